"The site: no warning, no broken link, nothing remote, an alternative text on every image, a table of claims that can be filtered."
import ast
import json
import re
import shutil
import subprocess
from configparser import ConfigParser
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from conftest import root
from frozen_nb import book
from frozen_nb.core.frozen import BadInput

try:
    book.check_packages()
    lacking = ''
except BadInput as error:
    lacking = str(error)
needs_extra = pytest.mark.skipif(bool(lacking), reason=lacking or 'the extra is there')
chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
needs_browser = pytest.mark.skipif(chromium is None, reason='no Chromium')

PNG = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='
WIDGET = {'application/vnd.jupyter.widget-view+json': {'model_id': 'a'}, 'text/plain': 'a progress bar'}


def tricky_notebook():
    "What has to be hidden, folded, linked or described."
    code = [
        new_code_cell('#| hide\nhidden_word = 1', outputs=[new_output('stream', name='stdout', text='hidden output')]),
        new_code_cell('#| export\nimport os'),
        new_code_cell('#| exporti\n#| eval: false\nx = 1', outputs=[new_output('stream', name='stderr', text='a warning of torch'), new_output('display_data', WIDGET),
                                                     new_output('stream', name='stdout', text='shown output')]),
        new_code_cell("save_figure(fig, 'a', 'Heads in 500 tosses, one bar a seed.')", outputs=[new_output('display_data', {'image/png': PNG, 'text/plain': '<Figure>'})]),
        new_code_cell('draw()', outputs=[new_output('display_data', {'image/png': PNG})])]
    text = new_markdown_cell(
        '# Tricks\n\n> A summary\n\n`fit_map` trains what [LiMBeR](10_limber.ipynb) needs; the [prompts](core/15_prompts.ipynb), the [zoo](core/03_zoo.ipynb), '
        'its [license](../LICENSE), the [claims](../CLAIMS.md), [below](#below).\n\n$$\\log p(x \\mid \\theta) \\in \\mathbb{R}, \\quad \\mathcal{L} = x_{<t}$$')
    last = new_markdown_cell('## Below\n\nThe last figure shows *nothing*:')
    return new_notebook(cells=[text, *code[:-1], last, code[-1]], metadata=dict(kernelspec=dict(name='python3', display_name='Python 3')))


@pytest.fixture(scope='module')
def notebooks(tmp_path_factory):
    folder = tmp_path_factory.mktemp('notebooks')
    for name in ('index', '10_limber', 'core/15_prompts'):
        (folder/name).parent.mkdir(exist_ok=True)
        shutil.copy(root/'nbs'/f'{name}.ipynb', folder/f'{name}.ipynb')
    nbformat.write(tricky_notebook(), folder/'20_tricks.ipynb')
    return folder


@pytest.fixture(scope='module')
def built(notebooks, tmp_path_factory):
    "The folder of the site, and the warnings of Sphinx."
    site = tmp_path_factory.mktemp('built')/'site'
    return site, book.build_book(site, notebooks)


@pytest.fixture(scope='module')
def site(built): return built[0]


class Html(HTMLParser):
    "Ids, links, resources and images of a page."
    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.resources, self.images, self.tags = set(), [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.tags.append((tag, a))
        if 'id' in a: self.ids.add(a['id'])
        if tag == 'a' and 'href' in a: self.links.append(a['href'])
        if tag == 'img': self.images.append(a)
        if tag in ('script', 'img', 'iframe', 'source', 'video', 'audio') and a.get('src'): self.resources.append(a['src'])
        if tag == 'link' and a.get('rel') not in ('canonical',) and 'href' in a: self.resources.append(a['href'])


def pages(site):
    "Name -> page; templates of the theme among the static files are none."
    paths = [p for p in sorted(site.rglob('*.html')) if '_static' not in p.parts]
    return {p.relative_to(site).as_posix(): Html(p.read_text(encoding='utf-8')) for p in paths}


def is_remote(address): return bool(urlsplit(address).scheme or urlsplit(address).netloc) and not address.startswith('data:')


def broken_links(site):
    "Each local link whose file or anchor is not there."
    parsed, broken = pages(site), []
    for name, page in parsed.items():
        for link in page.links + page.resources:
            if is_remote(link) or link.startswith('data:'): continue
            path, anchor = unquote(urlsplit(link).path), unquote(urlsplit(link).fragment)
            target = ((site/name).parent/path).resolve() if path else (site/name).resolve()
            if not target.is_file():
                broken.append(f'{name}: {link}')
            elif anchor and target.suffix == '.html' and anchor not in parsed[target.relative_to(site.resolve()).as_posix()].ids:
                broken.append(f'{name}: {link}')
    return broken


# ---- the site

@needs_extra
def test_the_builder_warns_of_nothing(built): assert built[1] == []


@needs_extra
def test_every_link_leads_somewhere(site):
    assert broken_links(site) == []
    links = [link for page in pages(site).values() for link in page.links]
    assert len(links) > 100 and any('#cell-' in link for link in links)


@needs_extra
def test_a_broken_link_is_seen(site, tmp_path):
    copy = tmp_path/'site'
    shutil.copytree(site, copy)
    text = (copy/'claims.html').read_text(encoding='utf-8')
    (copy/'claims.html').write_text(text.replace('</main>', '<a href="nowhere.html">a</a><a href="index.html#nowhere">b</a></main>'), encoding='utf-8')
    assert broken_links(copy) == ['claims.html: nowhere.html', 'claims.html: index.html#nowhere']


@needs_extra
def test_nothing_is_loaded_from_elsewhere(site):
    assert {name: [r for r in page.resources if is_remote(r)] for name, page in pages(site).items()} == dict.fromkeys(pages(site), [])
    for path in site.rglob('*.css'):
        addresses = re.findall(r'(?:url\(|@import )\s*["\']?([^"\')\s]+)', path.read_text(encoding='utf-8'))
        assert not any(address.startswith(('http', '//')) for address in addresses), path.name


@needs_extra
def test_every_image_has_a_text(site):
    images = [(name, image.get('alt', '')) for name, page in pages(site).items() for image in page.images]
    assert [name for name, alt in images if not alt.strip() or alt.startswith(('_images', '../_images', 'figure'))] == [] and len(images) > 10
    alts = [alt for name, alt in images if name == '20_tricks.html']
    assert alts == ['Heads in 500 tosses, one bar a seed.', 'Below: The last figure shows nothing']


@needs_extra
def test_what_is_hidden_stays_hidden(site):
    text = (site/'20_tricks.html').read_text(encoding='utf-8')
    for word in ('hidden_word', 'hidden output', 'a warning of torch', 'a progress bar', '#|'): assert word not in text, word
    assert 'shown output' in text and 'Heads in 500 tosses' in text
    assert text.count('<details') >= 1 and 'Show imports' in text
    for name in ('10_limber', 'core/15_prompts', 'index'): assert '#| export' not in (site/f'{name}.html').read_text(encoding='utf-8')


@needs_extra
def test_links_of_notebooks_are_links_of_the_book(site):
    links = pages(site)['20_tricks.html'].links
    wanted = ['10_limber.html', 'core/15_prompts.html', 'claims.html', '#below', 'reference/limber.html#frozen_nb.limber.fit_map',
              f'{book.REPOSITORY}/blob/main/nbs/core/03_zoo.ipynb', f'{book.REPOSITORY}/blob/main/LICENSE',
              f'{book.COLAB}/nbs/20_tricks.ipynb', f'{book.REPOSITORY}/blob/main/nbs/20_tricks.ipynb']
    assert [link for link in wanted if link not in links] == []


@needs_extra
def test_pages_follow_each_other(site):
    def following(name):
        text = (site/f'{name}.html').read_text(encoding='utf-8')
        return re.search(r'<a class="right-next"\s+href="([^"]+)"', text)[1]
    assert [following(name) for name in ('index', '10_limber', '20_tricks')] == ['10_limber.html', '20_tricks.html', 'core/index.html']


@needs_extra
def test_the_reference_has_types_comments_and_sources(site):
    text = (site/'reference'/'limber.html').read_text(encoding='utf-8')
    entry = text[text.index('id="frozen_nb.limber.fit_map"'):]
    entry = entry[:entry.index('id="frozen_nb.limber.kept_map"')]
    plain = re.sub(r'<[^>]+>', '', entry)
    assert 'encoder (Encoder | None) – None for a blind map' in plain and 'Train the one linear map.' in plain
    first, last = map(int, re.search(r'frozen_nb/limber\.py#L(\d+)-L(\d+)', entry).groups())
    lines = (root/'frozen_nb'/'limber.py').read_text(encoding='utf-8').splitlines()
    assert lines[first - 1].startswith('def fit_map(') and lines[last].strip() == ''
    assert 'Limber.caption' in text and '_read_map' not in text


@needs_extra
def test_the_search_knows_names_and_words(site):
    index = (site/'searchindex.js').read_text(encoding='utf-8')
    assert 'fit_map' in index and 'Tricks' in index and 'hidden_word' not in index


@needs_extra
def test_a_book_is_replaced_and_nothing_else_is(notebooks, tmp_path, shell, monkeypatch):
    def page(name):
        def run(sources, scratch):
            (scratch/'site').mkdir()
            (scratch/'site'/name).write_text(name)
            return []
        return run
    for name in ('old.html', 'new.html'):
        monkeypatch.setattr(book, '_run_sphinx', page(name))
        book.build_book(tmp_path/'site', notebooks)
    assert [p.name for p in (tmp_path/'site').glob('*.html')] == ['new.html']
    (tmp_path/'diary.txt').write_text('mine')
    said = shell('book', '--out', tmp_path)
    assert said.status == 2 and said.out == '' and said.err.count('\n') == 1 and 'something else than a book' in said.err
    assert {p.name for p in tmp_path.iterdir()} == {'site', 'diary.txt'}
    with pytest.raises(BadInput, match='no index.ipynb'): book.book_pages(tmp_path)


@needs_extra
def test_where_the_builder_fails_nothing_is_written(notebooks, tmp_path, monkeypatch):
    monkeypatch.setitem(book.SPHINX_SETTINGS, 'extensions', ['no_such_extension'])
    with pytest.raises(BadInput, match='Sphinx could not build the book') as refused: book.build_book(tmp_path/'site', notebooks)
    assert '\n' not in str(refused.value) and [*tmp_path.iterdir()] == []


# ---- in a browser

def in_browser(address):
    command = [chromium, '--headless', '--no-sandbox', '--disable-gpu', '--virtual-time-budget=5000', '--dump-dom', address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def shown_rows(html): return [a for tag, a in Html(html).tags if tag == 'tr' and 'data-verdict' in a and 'hidden' not in a]


@needs_extra
@needs_browser
def test_the_table_of_claims_is_filtered(site):
    rows = book.claim_rows()
    everything = shown_rows(in_browser(f'file://{site}/claims.html'))
    assert len(everything) == len(rows)
    shown = shown_rows(in_browser(f'file://{site}/claims.html#method=pinto&verdict=holds&scale=miniature'))
    wanted = [r for r in rows if (r['method'], r['verdict'], r['scale']) == ('pinto', 'holds', 'miniature')]
    assert 0 < len(shown) == len(wanted) < len(rows)
    assert {(a['data-method'], a['data-verdict'], a['data-scale']) for a in shown} == {('pinto', 'holds', 'miniature')}


@needs_extra
@needs_browser
def test_formulas_show_without_a_network(site):
    dom = in_browser(f'file://{site}/20_tricks.html')
    assert '<math' in dom and 'ℝ' in dom and 'ℒ' in dom and 'katex-error' not in dom and '\\]' not in dom


# ---- without the builder

def test_menus_name_every_value():
    rows = book.claim_rows()
    page = Html(book.claims_page(rows, {'limber': 'LiMBeR'}))
    data = [a for tag, a in page.tags if tag == 'tr' and 'data-method' in a]
    assert len(data) == len(rows)
    options = [a['value'] for tag, a in page.tags if tag == 'option' and a['value']]
    assert sorted(options) == sorted(value for name in book.CLAIM_FILTERS for value in {row[name] for row in rows})


def test_claims_are_those_of_the_page():
    text, rows = (root/'CLAIMS.md').read_text(encoding='utf-8'), book.claim_rows()
    findings = [row for row in rows if row['edition'] == 'second' and row['scale'] == 'miniature']
    assert all(row['statement'] in text for row in findings)
    held = sum(row['edition'] == 'second' and row['verdict'] == 'holds' for row in rows)
    assert held == text[:text.index('# First edition')].count('**holds**')


def test_names_are_those_that_modules_offer():
    "Read from the source, not imported."
    for path in sorted((root/'frozen_nb').rglob('*.py')):
        if path.name.startswith('_'): continue
        tree = ast.parse(path.read_text(encoding='utf-8'))
        offered = next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == '__all__'), [])
        entries = {entry.name for entry in book.module_entries(path)}
        assert {name for name in offered} <= entries, f'{path.name}: {set(offered) - entries}'
        assert {name for name in entries if '.' not in name} <= {*offered}, path.name


def test_comments_are_those_of_docments():
    from fastcore.docments import docments
    from frozen_nb import limber
    for entry in book.module_entries(root/'frozen_nb'/'limber.py'):
        if entry.kind != 'function': continue
        theirs = docments(getattr(limber, entry.name), args_kwargs=True)
        for p in entry.parameters: assert p.comment == (theirs[p.name.lstrip('*')] or ''), (entry.name, p.name)
        assert entry.returned[1] == (theirs.get('return') or ''), entry.name


def test_the_sources_of_the_whole_book(tmp_path):
    "Every notebook is in it, in the order of the house, and what they link to is there."
    parts = book.book_pages()
    listed = [page.name for listed in parts.values() for page in listed]
    assert sorted(listed) == sorted(p.relative_to(root/'nbs').with_suffix('').as_posix() for p in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in str(p))
    assert list(parts) == ['Start', *book.BOOK_PARTS]
    book.write_sources(parts, tmp_path)
    broken = []
    for path in tmp_path.rglob('*.ipynb'):
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        text = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
        text = re.sub(r'```.*?```|`[^`\n]*`', '', text, flags=re.S)
        for link in re.findall(r'\]\(([^()\s#]+)(?:#[^()\s]*)?\)', text):
            if not re.match('[a-z]+:', link) and not (path.parent/link).is_file(): broken.append(f'{path.name}: {link}')
            if link.startswith(f'{book.REPOSITORY}/blob/main/') and not (root/link.split('/main/')[1]).exists(): broken.append(f'{path.name}: {link}')
    assert broken == []


def test_links_lead_to_this_repository():
    config = ConfigParser(delimiters=['='])
    config.read(root/'settings.ini', encoding='utf-8')
    assert config['DEFAULT']['git_url'] == book.REPOSITORY and book.REPOSITORY.split('.com/')[1] in book.COLAB


def test_without_the_extra_there_is_one_line(monkeypatch, tmp_path, shell):
    monkeypatch.setattr(book, 'find_spec', lambda name: None)
    said = shell('book', '--out', tmp_path/'site')
    assert said.status == 2 and said.out == '' and said.err.count('\n') == 1
    assert 'myst_nb' in said.err and "pip install 'frozen_nb[book]'" in said.err and not (tmp_path/'site').exists()
