"""The conventions of CONTRIBUTING.md, counted in every notebook.

`tests/style_counts.json` holds, for notebooks that have not been rewritten yet, how often each
convention is broken. A notebook that is not in it breaks none. Counts only fall:
`python tests/test_style.py --lower` writes the lower ones, `python tests/test_style.py NOTEBOOK`
lists what is broken where.
"""
import ast
import io
import json
import re
import sys
import tokenize
from collections import Counter
from pathlib import Path

import pytest
from radon.complexity import cc_visit

root = Path(__file__).resolve().parent.parent
counts_file = root/'tests'/'style_counts.json'

LINE = 100          # characters of a line of code
CELL = {True: 25, False: 15}   # lines of a cell, by whether it is exported
CALLS = 5           # in one statement
COMPLEXITY = 10     # of a function, as radon counts it
PARAMETERS = 8      # of a function
PARAGRAPH = 60      # words

BANNED_NAMES = {'said', 'asked', 'found', 'told', 'whys', 'ms', 'e', 'real', 'gold', 'spoilt', 'drawn', 'lap'}
BANNED_WORDS = {
    'floor': r'\bfloors?\b',
    'picture': r'\bpictures?\b',
    'made from nothing': r'\bfrom nothing\b',
    'share of right answers': r'\bshare of (the )?right\b',
    'shifted set': r'\bshifted set',
    'like the training set': r'\blike the training set\b',
}
SIMPLE = (ast.Raise, ast.Return, ast.Continue, ast.Break, ast.Pass, ast.Assign, ast.AugAssign, ast.Expr, ast.Delete)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


# ---- notebooks and cells

def notebook_name(path):
    return path.relative_to(root/'nbs').with_suffix('').as_posix()


def all_notebooks():
    return sorted(p for p in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)


def read_cells(path):
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [(i, cell['cell_type'], ''.join(cell['source'])) for i, cell in enumerate(cells)]


def is_exported(source):
    return bool(re.search(r'^#\| *export', source, re.M))


def python_of(source):
    "The code of a cell without magics, line by line as it stands."
    return '\n'.join('pass' if re.match(r'\s*[%!]', line) else line for line in source.split('\n'))


# ---- rules for one code cell: each yields (line, what is wrong)

def long_lines(source, tree, exported):
    for n, line in enumerate(source.split('\n'), 1):
        if len(line) > LINE: yield n, f'{len(line)} characters'


def long_cells(source, tree, exported):
    lines = [line for line in source.split('\n') if line.strip()]
    if len(lines) > CELL[exported]: yield 1, f'{len(lines)} lines'


def own_line(block, head):
    "Whether a one-line compound statement may stand as it is: one simple statement, no `else`."
    return len(block) == 1 and isinstance(block[0], SIMPLE) and block[0].lineno == head


def crowded_lines(source, tree, exported):
    first = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt): first[node.lineno] += 1
    allowed = set()
    for node in ast.walk(tree):
        one_def = isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.With, ast.If))
        if one_def and own_line(node.body, node.body[0].lineno): allowed.add(node.body[0].lineno)
        for name in ('orelse', 'finalbody'):
            block = getattr(node, name, None)
            if not block or not isinstance(block, list) or isinstance(block[0], ast.If): continue
            line = source.split('\n')[block[0].lineno - 1]
            if re.match(r'\s*(else|finally) *:', line): yield block[0].lineno, 'a statement behind else or finally'
        if isinstance(node, ast.ExceptHandler) and node.body[0].lineno == node.lineno:
            yield node.lineno, 'a statement behind except'
    for line, n in first.items():
        if n > 1 + (line in allowed): yield line, f'{n} statements'


def parts_of(statement):
    "The expressions of a statement, without the statements inside it."
    for _, value in ast.iter_fields(statement):
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, ast.AST) and not isinstance(part, (ast.stmt, ast.ExceptHandler, ast.match_case)): yield part


def many_calls(source, tree, exported):
    for node in ast.walk(tree):
        if not isinstance(node, ast.stmt): continue
        n = sum(isinstance(x, ast.Call) for part in parts_of(node) for x in ast.walk(part))
        if n > CALLS: yield node.lineno, f'{n} calls'


def nested_comprehensions(source, tree, exported):
    for node in ast.walk(tree):
        if not isinstance(node, COMPREHENSIONS): continue
        inner = [x for x in ast.walk(node) if x is not node and isinstance(x, COMPREHENSIONS)]
        if inner: yield node.lineno, 'a comprehension in a comprehension'


def complex_functions(source, tree, exported):
    lines = source.split('\n')
    for block in cc_visit(source):
        functions = [block] if hasattr(block, 'is_method') else block.methods
        for f in functions:
            reason = re.search(r'# complexity: \w+', ' '.join(lines[max(0, f.lineno - 2):f.lineno]))
            if f.complexity > COMPLEXITY and not reason: yield f.lineno, f'{f.name}: complexity {f.complexity}'


def parameters_of(function):
    a = function.args
    plain = [*a.posonlyargs, *a.args]
    if plain and plain[0].arg in ('self', 'cls'): plain = plain[1:]
    return plain, [*plain, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]


def many_parameters(source, tree, exported):
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS) and len(parameters_of(node)[1]) > PARAMETERS:
            yield node.lineno, f'{node.name}: {len(parameters_of(node)[1])} parameters'


def comments_of(source):
    "Line -> whether a comment stands on it."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0] for t in tokens if t.type == tokenize.COMMENT}


def patched_class(function):
    "The class that a function with `@patch` belongs to; '' for any other function."
    first = (function.args.posonlyargs + function.args.args)[:1]
    return getattr(first[0].annotation, 'id', '') if first and first[0].arg == 'self' else ''


def public_functions(tree):
    for node in tree.body:
        private = getattr(node, 'name', '_').startswith('_')
        if isinstance(node, FUNCTIONS) and not private and not patched_class(node).startswith('_'): yield node
        if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
            for f in node.body:
                if isinstance(f, FUNCTIONS) and (not f.name.startswith('_') or f.name in ('__init__', '__call__')): yield f


def bare_parameters(source, tree, exported):
    if not exported: return
    commented = comments_of(source)
    for f in public_functions(tree):
        for p in parameters_of(f)[1]:
            if p.annotation is None: yield p.lineno, f'{f.name}: {p.arg} has no type'
            elif p.lineno not in commented: yield p.lineno, f'{f.name}: {p.arg} has no docment'


def imports(source, tree, exported):
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom): continue
        ours = (node.module or '').startswith('frozen_nb')
        for name in node.names:
            if name.name == '*' and node.module != 'frozen_nb.core.frozen': yield node.lineno, f'everything from {node.module}'
            if ours and name.name.startswith('_') and not name.name.startswith('__'): yield node.lineno, f'{name.name} is private to {node.module}'


def bound_names(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store): yield node.lineno, node.id
        if isinstance(node, ast.arg): yield node.lineno, node.arg
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)): yield node.lineno, node.name


def names(source, tree, exported):
    for line, name in bound_names(tree):
        if name in BANNED_NAMES: yield line, f'{name} is no name of the field'
        if name.endswith('_') and not name.endswith('__') and name != '_': yield line, f'{name} ends with _'


def prose_of(source, tree):
    "Docstrings and comments of a code cell."
    for t in tokenize.generate_tokens(io.StringIO(source).readline):
        if t.type == tokenize.COMMENT: yield t.start[0], t.string
    for node in ast.walk(tree):
        if isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.Module)) and ast.get_docstring(node):
            yield node.body[0].lineno, ast.get_docstring(node)


def words_in_code(source, tree, exported):
    for line, text in prose_of(source, tree):
        for word, pattern in BANNED_WORDS.items():
            if re.search(pattern, text): yield line, f'the word {word!r}'


CODE_RULES = dict(
    long_lines=long_lines, long_cells=long_cells, crowded_lines=crowded_lines, many_calls=many_calls,
    nested_comprehensions=nested_comprehensions, complex_functions=complex_functions,
    many_parameters=many_parameters, bare_parameters=bare_parameters, imports=imports, names=names,
    words_in_code=words_in_code)


# ---- rules for one markdown cell

def paragraphs(text):
    "Paragraphs and list items of a markdown cell; code, tables and headings apart."
    text = re.sub(r'^ *(```|~~~).*?^ *\1 *$', '', text, flags=re.M | re.S)
    for block in re.split(r'\n\s*\n|\n(?= *(?:[-*+>]|\d+\.) )', text):
        if block.strip() and not re.match(r'\s*[|#]', block): yield block


def long_paragraphs(text):
    for block in paragraphs(text):
        n = len(re.sub(r'\]\([^)]*\)', ']', block).split())
        if n > PARAGRAPH: yield f'{n} words: {block.strip()[:50]!r}'


def missing_links(text):
    for block in paragraphs(text):
        cited = re.search(r'\bet al\.?,? \(?\d{4}', block)
        chapter = re.search(r'\b(chapter|notebook) \d\d?\b', block)
        if (cited or chapter) and '](' not in block: yield f'no link: {block.strip()[:50]!r}'


def words_in_markdown(text):
    for block in paragraphs(text):
        for word, pattern in BANNED_WORDS.items():
            if re.search(pattern, block): yield f'the word {word!r}: {block.strip()[:50]!r}'


MARKDOWN_RULES = dict(long_paragraphs=long_paragraphs, missing_links=missing_links, words_in_markdown=words_in_markdown)


# ---- counting

def violations(path):
    "Everything that a notebook breaks: (rule, cell, line, what)."
    for i, kind, source in read_cells(path):
        if kind == 'markdown':
            for rule, check in MARKDOWN_RULES.items():
                yield from ((rule, i, 0, what) for what in check(source))
        if kind == 'code':
            code = python_of(source)
            tree = ast.parse(code)
            for rule, check in CODE_RULES.items():
                yield from ((rule, i, line, what) for line, what in check(code, tree, is_exported(source)))


def count(path):
    return dict(sorted(Counter(rule for rule, *_ in violations(path)).items()))


def frozen_counts():
    return json.loads(counts_file.read_text()) if counts_file.exists() else {}


@pytest.mark.parametrize('path', all_notebooks(), ids=notebook_name)
def test_a_notebook_keeps_the_conventions(path):
    allowed, now = frozen_counts().get(notebook_name(path), {}), count(path)
    worse = {rule: n for rule, n in now.items() if n > allowed.get(rule, 0)}
    where = [f'cell {i}, line {line}: {rule}: {what}' for rule, i, line, what in violations(path) if rule in worse]
    assert not worse, f'allowed {allowed}\n' + '\n'.join(where)
    assert now == allowed, 'fewer than before: python tests/test_style.py --lower'


def test_only_chapters_and_what_is_not_rewritten_yet_have_counts():
    assert {*frozen_counts()} <= {notebook_name(p) for p in all_notebooks()}


def test_public_names_are_unique():
    homes = {}
    for path in all_notebooks():
        for _, kind, source in read_cells(path):
            if kind != 'code' or not is_exported(source): continue
            for node in ast.parse(python_of(source)).body:
                if isinstance(node, FUNCTIONS) and patched_class(node): continue   # a method
                targets = getattr(node, 'targets', [node])
                for name in (getattr(t, 'name', getattr(t, 'id', '_')) for t in targets):
                    if not name.startswith('_'): homes.setdefault(name, set()).add(notebook_name(path))
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


# ---- the rules themselves can fail

BAD = {
    'long_lines': 'x = 1  # ' + 'a'*100,
    'long_cells': '\n'.join(f'x{i} = {i}' for i in range(30)),
    'crowded_lines': 'x = 1; y = 2',
    'many_calls': 'x = f(f(f(f(f(f(1))))))',
    'nested_comprehensions': 'x = [[b for b in a] for a in c]',
    'complex_functions': 'def f(x):\n' + '\n'.join(f'    if x == {i}: return {i}' for i in range(12)),
    'many_parameters': 'def f(a, b, c, d, e1, f1, g, h, i): pass',
    'bare_parameters': '#| export\ndef f(a): pass',
    'imports': 'from frozen_nb.core.zoo import _quiet',
    'names': 'said = 1',
    'words_in_code': 'x = 1  # of floor 09',
}
GOOD = '''#| export
from frozen_nb.core.frozen import *

def f(
    a: int, # how many
) -> int:   # one more
    "One more."
    if a < 0: raise BadInput('negative')
    with guard(model): a = g(a)
    def h(x): return x
    return h(a + 1)
'''


@pytest.mark.parametrize('rule', CODE_RULES)
def test_a_broken_convention_is_counted(rule):
    code, good = BAD[rule], CODE_RULES[rule](GOOD, ast.parse(GOOD), True)
    assert list(CODE_RULES[rule](code, ast.parse(code), is_exported(code))), code
    assert list(good) == []


def test_broken_prose_is_counted():
    assert list(long_paragraphs('word '*61)) and not list(long_paragraphs('word '*60))
    assert list(missing_links('as Li et al. (2023) say')) and not list(missing_links('as [Li et al. 2023](x) say'))
    assert list(words_in_markdown('on floor 09')) and not list(words_in_markdown('in [zoo](03_zoo.ipynb)'))


def main(args):
    if args == ['--lower']:
        old, lower = frozen_counts(), {}
        for name in old:
            now = count(root/'nbs'/f'{name}.ipynb')
            lower[name] = {rule: min(n, now[rule]) for rule, n in old[name].items() if rule in now}
        lower = {name: rules for name, rules in lower.items() if rules}
        counts_file.write_text(json.dumps(lower, indent=1) + '\n')
    for name in (a for a in args if a != '--lower'):
        path = root/'nbs'/f"{name.removesuffix('.ipynb').removeprefix('nbs/')}.ipynb"
        for rule, i, line, what in violations(path): print(f'cell {i:3d} line {line:3d} {rule}: {what}')


if __name__ == '__main__': main(sys.argv[1:])
