"""Six papers that get something new out of frozen pretrained models.

The names below are the entry points; each is imported when it is first used.
"""
from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    'load_lm': 'core.zoo', 'load_encoder': 'core.zoo', 'load_lmm': 'core.zoo',
    'load_seq2seq': 'core.zoo', 'load_sam': 'core.zoo', 'guard': 'core.frozen',
    'Limber': 'limber', 'align_images': 'ima', 'load_grounder': 'flmm',
    'load_block': 'core.blocks', 'adapters_of': 'generative_adapter', 'explain': 'pinto',
}
__all__ = ['__version__', *_HOMES]


def __getattr__(name):
    if name not in _HOMES: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(import_module(f'.{_HOMES[name]}', __name__), name)
    globals()[name] = value   # found at once the next time
    return value


def __dir__():
    return __all__
