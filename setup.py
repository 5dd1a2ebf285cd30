"Reads settings.ini; carries `data/` and `nbs/` into the wheel as `frozen_nb/data` and `frozen_nb/nbs`."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup, find_packages

here = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(here/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

def stays(path):
    "Hidden folders, and trainings that are worth their size in a clone alone."
    parts = path.relative_to(here).parts
    return parts[:2] == ('data', 'runs') or any(part.startswith(('.', '_')) for part in parts)

def carried(folder, package):
    "Every folder under `folder` as a package of its own, so that its files travel."
    folders = [p for p in [here/folder, *(here/folder).rglob('*')] if p.is_dir() and not stays(p)]
    return {'.'.join([package, *p.relative_to(here/folder).parts]): p.relative_to(here).as_posix() for p in folders}

data = carried('data', 'frozen_nb.data') | carried('nbs', 'frozen_nb.nbs')
requirements = cfg['requirements'].split()
extras = {name: cfg[f'{name}_requirements'].split() for name in ('dev', 'book', 'real')}
extras['dev'] += extras['book']   # the tests build a book

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], license='Apache-2.0',
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], keywords=cfg['keywords'],
    long_description=(here/'README.md').read_text(encoding='utf-8') if (here/'README.md').exists() else '',
    long_description_content_type='text/markdown',
    packages=find_packages(include=['frozen_nb', 'frozen_nb.*']) + list(data),
    package_dir={'frozen_nb': 'frozen_nb', **data},
    package_data={'frozen_nb': ['py.typed'], **{name: ['*'] for name in data}},
    install_requires=requirements, extras_require=extras,
    python_requires='>=' + cfg['min_python'], zip_safe=False,
    entry_points={'console_scripts': cfg['console_scripts'].split()},
)
