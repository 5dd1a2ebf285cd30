"What has to be in step: notebooks, modules, README, records and models; and what must not be committed."
import ast, contextlib, filecmp, json, os, re, shutil, subprocess, sys, sysconfig
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

import pytest

from conftest import root
from frozen_nb.core.claims import claims_markdown, load_records, stale, unmet
from frozen_nb.core.findings import findings_markdown, methods_with_findings, read_findings
from frozen_nb.core.frozen import data_path, fingerprint
from frozen_nb.flmm import load_grounder
from frozen_nb.generative_adapter import load_generator
from frozen_nb.pinto import load_reasoner
from frozen_nb.core.prefix import load_map
from frozen_nb.core.zoo import card, load_encoder, load_lm, load_lmm, load_sam, load_seq2seq, shipped

def committed():
    "The files of this checkout that git does not ignore; without git, all but the usual leftovers."
    try: names = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard', '-z'], cwd=root, capture_output=True, text=True, check=True).stdout.split('\0')
    except (OSError, subprocess.CalledProcessError):
        junk = re.compile(r'(^|/)(\.venv|\.git|build|dist|_out|__pycache__|[^/]*\.egg-info|\.pytest_cache|\.hypothesis|\.ipynb_checkpoints)/')
        names = [p for p in (p.relative_to(root).as_posix() for p in root.rglob('*') if p.is_file()) if not junk.search(p)]
    return [root/name for name in sorted(names) if name and (root/name).is_file()]

files = committed()
notebooks = [p for p in files if p.suffix == '.ipynb']
text = [p for p in files if p.suffix in ('.py', '.ipynb', '.md', '.json', '.ini', '.toml', '.in', '.txt', '.yml', '') or p.name == 'run']
records = load_records() if data_path('claims').exists() else []
recorded = pytest.mark.skipif(not records, reason='data/claims has no records yet')

@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "This checkout, exported and cleaned again somewhere else."
    folder = tmp_path_factory.mktemp('copy')
    for p in files:
        if p.is_relative_to(root/'data'): continue
        (folder/p.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(p, folder/p.relative_to(root))
    for name in ('nbdev_export', 'nbdev_clean'): subprocess.run([os.path.join(sysconfig.get_path('scripts'), name)], cwd=folder, check=True, env=os.environ | dict(PYTHONPATH=''))
    return folder

@pytest.mark.parametrize('kind', ['frozen_nb/**/*.py', 'nbs/**/*.ipynb'])
def test_modules_and_notebooks_are_exported_and_clean(copy, kind):
    names = lambda folder: {p.relative_to(folder).as_posix() for p in folder.glob(kind)}
    assert names(copy) == {p.relative_to(root).as_posix() for p in files if p.is_relative_to(root/kind.split('/')[0]) and p.suffix == Path(kind).suffix}, 'run nbdev_export and commit all modules'
    changed = filecmp.cmpfiles(root, copy, sorted(names(copy)), shallow=False)
    assert changed[1:] == ([], []), 'run nbdev_export and nbdev_clean'

def test_readme_is_made_from_the_index(tmp_path):
    config = f"--FilesWriter.build_directory={tmp_path}"
    subprocess.run([sys.executable, '-m', 'nbconvert', '--config', root/'.ci'/'readme_config.py', config, root/'nbs'/'index.ipynb'], cwd=tmp_path, check=True)
    made = [p.relative_to(tmp_path) for p in tmp_path.rglob('*') if p.is_file()]
    assert {*made} == {p.relative_to(root) for p in files if p == root/'README.md' or p.parent.name == 'README_files'} # the page and its figures
    assert filecmp.cmpfiles(tmp_path, root, made, shallow=False)[1:] == ([], [])

@recorded
def test_readme_says_what_the_records_say():
    page = (root/'README.md').read_text(encoding='utf-8')
    rows = [line for line in page.splitlines() if line.startswith('| [')]
    said = {key: line for line in rows for key in ('10_limber', '11_ima', '12_flmm', '13_lm4visual', '14_generative_adapter', '15_pinto') if key in line}
    assert len(said) == len(rows) == 6
    by_id = {r['id']: r for r in records} | {f"{r['method']}.{r['finding']}, {r['scale']}": r for path in data_path('claims', 'findings').glob('*.json') for r in read_findings(path) if 'value' in r}
    for chapter, id in (('10_limber', 'limber.species, miniature'), ('11_ima', 'ima.own-text, miniature'), ('12_flmm', 'flmm.region-things, miniature'), ('13_lm4visual', 'lm4visual.images-minus-shuffled'), ('15_pinto', 'pinto.rationales-out, miniature')):
        r = by_id[id]
        assert f"{r['value']:.2f}".replace('-', '−') in said[chapter] and f"**{r['verdict']}**" in said[chapter], id

@recorded
def test_the_page_of_claims_is_made_from_the_records():
    assert (root/'CLAIMS.md').read_text(encoding='utf-8') == claims_markdown(records, findings_markdown(methods_with_findings(data_path('claims')))), 'run frozen-nb claims --markdown CLAIMS.md'

@pytest.mark.parametrize('path', notebooks, ids=lambda p: p.relative_to(root).with_suffix('').as_posix())
def test_notebook_file(path):
    nb = json.loads(path.read_text(encoding='utf-8'))
    code = [c for c in nb['cells'] if c['cell_type'] == 'code']
    errors = [o['ename'] for c in code for o in c['outputs'] if o['output_type'] == 'error']
    assert errors == [] and path.stat().st_size < 1_000_000

PACKAGES = ('core', 'world', 'pretraining', 'benchmarks', '', 'fits', 'shell')  # '': the method chapters, at the top; 'shell': what uses all of them

def modules_in_order():
    "The modules of every notebook that exports one, in the order in which they may import each other: 'core.frozen', ..."
    folder = lambda p: p.parent.name if p.parent != root/'nbs' else 'shell' if p.stem >= '80' else ''
    place = lambda p: (PACKAGES.index(folder(p)), p.stem)
    numbered = [p for p in notebooks if (re.match(r'\d\d_', p.stem) or p.parent.name == 'fits') and p.parent.name != 'experiments']
    return ['.'.join([*p.parent.relative_to(root/'nbs').parts, re.sub(r'^\d\d_', '', p.stem)]) for p in sorted(numbered, key=place)]

def imported(path):
    "The modules of this package that a module imports, at its top or inside a function."
    package = path.relative_to(root/'frozen_nb').parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and node.level:
            found.add('.'.join([*package[:len(package) - node.level + 1], *(node.module or '').split('.')]).strip('.'))
        if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('frozen_nb.'): found.add(node.module.removeprefix('frozen_nb.'))   # nbdev leaves imports over several lines as they are
    return found

def test_a_module_imports_only_what_stands_above_it():
    order = modules_in_order()
    chapters = [name for name in order if '.' not in name and name not in ('cli', 'evaluate')]
    assert 'fits.limber' in order[order.index('pinto'):order.index('cli')] and 'limber' in imported(root/'frozen_nb'/'fits'/'limber.py')
    for i, name in enumerate(order):
        path = root/'frozen_nb'/f"{name.replace('.', '/')}.py"
        if not path.exists(): continue   # a notebook that exports nothing
        below = imported(path) & {*order[i:]}
        assert below == set(), f'{name} imports {below}, which stand below it'
        if name in chapters: assert imported(path) & {*chapters} == set(), f'{name} imports another method chapter'

def test_no_path_of_one_machine():
    found = [f'{p.relative_to(root)}: {m[0]}' for p in text if p.name != 'test_repo.py' for m in re.finditer(r'(?<![\w.:/])/(root|home|work|Users|mnt|opt|tmp)/[\w.-]+', p.read_text(encoding='utf-8', errors='replace'))]
    assert found == []

def test_what_ships_is_small():
    sizes = {p.relative_to(root).as_posix(): p.stat().st_size for p in files}
    assert sum(size for name, size in sizes.items() if name.startswith('data/zoo/')) <= 60e6
    pickles = [name for name in sizes if name.endswith(('.pt', '.pth', '.bin', '.pkl', '.ckpt'))]
    assert pickles == []

def test_licences_of_what_ships():
    "Every model says its licence in its card, or the notice names where it is from; the notice names nothing that is gone."
    notice = (root/'NOTICE.md').read_text(encoding='utf-8')
    for folder in sorted((root/'data/zoo').iterdir()):
        path = folder/'card.json'
        if path.exists(): assert json.loads(path.read_text(encoding='utf-8'))['licence'] == 'Apache-2.0', folder.name
        else: assert f'`data/zoo/{folder.name}`' in notice, folder.name
    named = re.findall(r'`((?:data|nbs|tests)/[\w./-]+)`', notice)
    assert len(named) >= 4 and all((root/name).exists() for name in named)

@pytest.mark.skipif(not shipped(), reason='data/zoo has no models yet')
@pytest.mark.parametrize('name', shipped())
def test_card_has_the_fingerprint_of_its_weights(name):
    seen = dict(lm=lambda: load_lm(name, device='cpu').fingerprint, encoder=lambda: load_encoder(name, device='cpu').fingerprint, map=lambda: fingerprint(load_map(data_path('zoo', name))),
                lmm=lambda: load_lmm(name, device='cpu').fingerprint, sam=lambda: load_sam(name, device='cpu').fingerprint, head=lambda: fingerprint(load_grounder(data_path('zoo', name), device='cpu').flmm),
                seq2seq=lambda: load_seq2seq(name, device='cpu').fingerprint, reasoner=lambda: fingerprint(load_reasoner(data_path('zoo', name), 'cpu').model),
                generator=lambda: fingerprint(load_generator(data_path('zoo', name), load_lm('llama', device='cpu'))))
    assert seen[card(name)['kind']]() == card(name)['fingerprint']

@recorded
def test_records_are_of_the_models_that_ship():
    ours = {name: card(name)['fingerprint'] for name in shipped()}
    assert stale(records, ours) == {}
    for path in data_path('claims', 'tables').glob('*.json'):
        changed = {name: [m for m, f in t['models'].items() if ours.get(m, f) != f] for name, t in json.loads(path.read_text(encoding='utf-8')).items()}
        assert not any(changed.values()), changed

@recorded
def test_required_claims_hold():
    broken = [f"{r['id']}: {r['verdict']}" for r in records if r in unmet(records) or (r['required'] and r['verdict'] == 'not run')]
    assert broken == []

@recorded
def test_records_of_a_chapter_are_in_its_file():
    for path in data_path('claims').glob('*.json'): assert {r['method'] for r in load_records(path)} == {path.stem}

def test_modules_and_chapters_need_no_test_tools():
    "What `frozen-nb reproduce` runs imports only what a plain install brings."
    plain = lambda name: re.sub('[-_.]+', '-', re.split('[^A-Za-z0-9._-]', name)[0]).lower()
    config = ConfigParser(delimiters=['='])
    config.read(root/'settings.ini', encoding='utf-8')
    brought, todo = set(), [plain(r) for r in config['DEFAULT']['requirements'].split()]
    while todo:
        if (name := todo.pop()) in brought: continue
        brought.add(name)
        with contextlib.suppress(metadata.PackageNotFoundError): todo += [plain(r) for r in metadata.requires(name) or () if 'extra ==' not in r]
    code = {p: p.read_text(encoding='utf-8') for p in files if p.is_relative_to(root/'frozen_nb') and p.suffix == '.py'}
    for p in notebooks:
        if re.match('[1-7][0-9]', p.name) or p.parent.name == 'experiments': code[p] = '\n'.join(''.join(c['source']) for c in json.loads(p.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code')
    known, missing = metadata.packages_distributions(), []
    for p, source in code.items():
        tree = ast.parse('\n'.join('pass' if re.match(r'\s*[%!]', line) else line for line in source.split('\n')))
        names = [n.module.split('.')[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and not n.level]
        names += [a.name.split('.')[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
        for name in {*names} - {*sys.stdlib_module_names, 'frozen_nb'}:
            if not brought & {plain(d) for d in known.get(name, ['nothing'])}: missing.append(f'{p.name}: {name}')
    assert missing == []

def test_import_is_light():
    code = 'import sys, time\nt = time.process_time(); import frozen_nb; s = time.process_time() - t\nassert s < 2, s\nassert not {"torch", "transformers", "timm", "open_clip"} & {*sys.modules}'
    subprocess.run([sys.executable, '-c', code], check=True, cwd=root)
