"Leading directions: exact, deterministic, with the gradient of a whole decomposition."
import pytest
import torch
from hypothesis import given, settings, strategies as st

from frozen_nb.core import low_rank
from frozen_nb.core.frozen import data_path
from frozen_nb.core.low_rank import polar, polar_factors
from frozen_nb.core.zoo import load_lm
from frozen_nb.generative_adapter import load_generator, Memory
from frozen_nb.world.documents import biography


def with_values(s, seed=0):
    "A matrix of given singular values."
    g = torch.Generator().manual_seed(seed)
    n = s.shape[-1]
    U, V = (torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64)).Q for _ in range(2))
    return U*s @ V.mT


def whole(M, rank, G):
    "The factor and its gradient by a decomposition of the matrix itself."
    U, s, Vh = torch.linalg.svd(M, full_matrices=False)
    k = low_rank._kept(s, rank, low_rank.FLOOR)
    return (U*k[..., None, :]) @ Vh, low_rank._whole_gradient(U, s, Vh, k, G)


def ours(M, rank, G):
    M = M.clone().requires_grad_()
    P = polar(M, rank)
    P.backward(G)
    return P.detach(), M.grad


def off(a, b): return float((a - b).norm()/b.norm())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.floats(.5, .97), st.integers(1, 3))
def test_eigenvectors_are_exact_with_their_gradient(seed, rank, fall, n):
    M = torch.stack([with_values(fall**torch.arange(24).double(), seed + i) for i in range(n)])
    assert low_rank._eigenvectors(M, rank) is not None
    G = torch.randn(M.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    (P, dM), (Q, dQ) = ours(M, rank, G), whole(M, rank, G)
    assert off(P, Q) < 1e-6 and off(dM, dQ) < 1e-5
    assert torch.equal(P, ours(M, rank, G)[0])     # the same at every call
    U, V = polar_factors(M, rank)
    assert U.shape == V.shape == (n, 24, rank) and off(U @ V.mT, Q) < 1e-6


@pytest.mark.parametrize('R, rank', [(256, 32), (96, 48)])
def test_of_the_shape_of_a_generator(R, rank):
    M = with_values(1e-3**(torch.arange(R).double()/R))
    G = torch.randn(R, R, generator=torch.Generator().manual_seed(0)).double()
    (P, dM), (Q, dQ) = ours(M, rank, G), whole(M, rank, G)
    assert off(P, Q) < 1e-5 and off(dM, dQ) < 1e-5
    single = ours(M.float(), rank, G.float())
    assert single[0].dtype == single[1].dtype == torch.float32 and off(single[0], Q) < 1e-4


@pytest.mark.parametrize('share, by_eigenvectors', [(1e-3, True), (1e-5, False), (1e-9, False)])
def test_rough_squares_are_not_taken(share, by_eigenvectors):
    M = with_values(share**(torch.arange(20).double()/4))    # the fifth is at this share
    assert (low_rank._eigenvectors(M, 5) is not None) == by_eigenvectors
    values = torch.linalg.svdvals(polar(M, 5))
    assert ((values > .5).sum(), (values - values.round()).abs().max() < 1e-9) == (5, True)
    U, _, Vh = torch.linalg.svd(M)
    assert off(polar(M, 5), U[:, :5] @ Vh[:5]) < 1e-5


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 64))
def test_as_many_directions_as_tokens(seed, tokens, rank):
    g = torch.Generator().manual_seed(seed)
    K, V = (torch.randn(tokens, 64, generator=g) for _ in range(2))    # in single precision
    K[1::2] = K[:tokens//2*2:2]      # tokens that come twice add no direction
    V[1::2] = V[:tokens//2*2:2]
    M = (K.double().T @ V.double()).requires_grad_()
    P = polar(M, rank)
    P.square().sum().backward()
    values = torch.linalg.svdvals(P.detach())
    assert int((values > .5).sum()) == min(rank, (tokens + 1)//2) and (values - values.round()).abs().max() < 1e-8
    assert M.grad.isfinite().all()


@pytest.mark.parametrize('rank', [3, 8, 24])
def test_ties_and_nothing_have_a_finite_gradient(rank):
    for M in (torch.eye(24), torch.zeros(24, 24), torch.diag(torch.cat([torch.ones(12), torch.zeros(12)]))):
        M = M.double().requires_grad_()
        polar(M, rank)[0].sum().backward()
        assert M.grad.isfinite().all()
    assert (polar(torch.zeros(2, 24, 24), rank) == 0).all()


@pytest.mark.parametrize('animals', [1, 2, 3, 8])
def test_the_shipped_generator_keeps_every_token(animals):
    lm = load_lm('llama', device='cpu')
    generator = load_generator(data_path('zoo', 'adapter'), lm)
    text = biography(5, animals, seed=1).text
    ids = lm.tokenizer(text, add_special_tokens=False).input_ids
    state = Memory(lm, generator).add(text).state[0]           # (L, R, R)
    exact = load_lm('llama', dtype=torch.float64, device='cpu')
    twin = load_generator(data_path('zoo', 'adapter'), lm).double()
    twin.base = exact.fingerprint
    other = polar(Memory(exact, twin).add(text).state[0], generator.rank)
    P = polar(state, generator.rank, generator.floor)
    values = torch.linalg.svdvals(P)
    assert (values - values.round()).abs().max() < 1e-4
    kept = (values > .5).sum(1).tolist()
    # into the first layer go embeddings, the same for equal tokens
    assert kept == [min(len(set(ids)), 64)] + [min(len(ids), 64)]*5
    assert max(off(a, b) for a, b in zip(P, other)) < .05      # of a model in double precision
