"Codebook and levels beside vector-quantize-pytorch; one codebook in two processes."
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fmri_ldm.quantize import FSQ, VectorQuantizer, _tally, nearest_code


@pytest.fixture
def oracle():
    import vector_quantize_pytorch
    return vector_quantize_pytorch


def normal(*shape, name=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(name))


@pytest.mark.parametrize('levels', [(8, 5, 5, 5), (7, 4), (3,), (16, 6, 9)])
def test_fsq(oracle, levels):
    "Codes, indices, the way back and gradients are theirs."
    mine, theirs = FSQ(levels), oracle.FSQ(list(levels))
    x = (3*normal(2, len(levels), 4, 3, 5)).requires_grad_()
    z = mine(x)[0]
    want, index = theirs(x)
    assert torch.allclose(z, want, atol=1e-6)
    assert torch.equal(mine.encode(x), index.long())
    assert torch.allclose(mine.decode(index), theirs.indices_to_codes(index), atol=1e-6)
    g = normal(*z.shape, name=1)
    for a, b in zip(torch.autograd.grad((z*g).sum(), x), torch.autograd.grad((want*g).sum(), x)):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize('cosine', [False, True])
def test_codebook(oracle, cosine):
    "The same codes after each of ten batches, and the same output, indices, loss and gradient."
    n, k = 6, 4
    mine = VectorQuantizer(n, k, decay=.9, commitment=.3, cosine=cosine, kmeans=False, restart=0)
    theirs = oracle.VectorQuantize(dim=k, codebook_size=n, decay=.9, eps=1e-12, commitment_weight=.3,
                                   use_cosine_sim=cosine, threshold_ema_dead_code=0,
                                   rotation_trick=False)
    book, start = theirs._codebook, torch.nn.functional.normalize(normal(n, k), dim=1)
    mine.sums.copy_(start); mine.counts.fill_(1)
    book.embed.data.copy_(start[None]); book.embed_avg.copy_(start[None]); book.cluster_size.fill_(1)
    mine.train(); theirs.train()
    for i in range(10):
        x = normal(3, 200, k, name=i + 2)
        a, b = (x.clone().requires_grad_() for _ in range(2))
        index = mine.encode(a.movedim(-1, 1))
        z, extra, _ = mine(a.movedim(-1, 1))
        want, want_index, want_extra = theirs(b)
        assert torch.equal(index, want_index)
        assert torch.allclose(z.movedim(1, -1), want, atol=1e-5)
        assert torch.allclose(mine.codebook, book.embed[0], atol=1e-4)
        if not cosine:                                    # they commit before normalising
            assert torch.allclose(extra, want_extra.sum(), atol=1e-5)


def test_masked_codebook(oracle):
    "A mask does what theirs does: codes, and the loss, come from the latents inside."
    n, k = 6, 4
    mine = VectorQuantizer(n, k, decay=.9, kmeans=False, restart=0)
    theirs = oracle.VectorQuantize(dim=k, codebook_size=n, decay=.9, eps=1e-12, commitment_weight=.25,
                                   threshold_ema_dead_code=0, rotation_trick=False)
    book, start = theirs._codebook, normal(n, k)
    mine.sums.copy_(start); mine.counts.fill_(1)
    book.embed.data.copy_(start[None]); book.embed_avg.copy_(start[None]); book.cluster_size.fill_(1)
    mine.train(); theirs.train()
    for i in range(10):
        x, mask = normal(3, 50, k, name=i + 2), normal(3, 50, name=i + 50) > 0
        z, extra, _ = mine(x.movedim(-1, 1), None, mask)
        want, _, want_extra = theirs(x, mask=mask)
        assert torch.allclose(z.movedim(1, -1)[mask], want[mask], atol=1e-5)
        assert torch.allclose(mine.codebook, book.embed[0], atol=1e-4)
        assert torch.allclose(extra, want_extra.sum(), atol=1e-5)


def half(i, rank, masked):
    "Half of batch i, and its mask: the first process sees nothing at first, both nothing at 5."
    rows = normal(64, 3, name=i).chunk(2)[rank]
    if not masked: return rows, None
    mask = normal(64, name=100 + i).chunk(2)[rank] > 0
    return rows, mask & ~torch.tensor(i == 5 or rank == 0 and i in (0, 3))


def one_of_two(rank, port, out, cosine, masked):
    "Half of each batch; the codebook of each process is saved."
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    torch.manual_seed(0)
    vq, fsq, saved = VectorQuantizer(16, 3, decay=.8, cosine=cosine, restart=.2), FSQ((3, 3, 3)), {}
    for i in range(12):
        rows, mask = half(i, rank, masked)
        for name, q in dict(vq=vq, fsq=fsq).items():
            saved |= {f'{name}.usage{i}': q(rows, None, mask)[2]['usage']}
        saved |= {f'codebook{i}': vq.codebook, f'counts{i}': vq.counts.clone()}
    bad = torch.full((5, 3), torch.nan) if rank else normal(5, 3)
    vq(bad)                                               # one is ill: neither moves
    vq.eval()(normal(5, 3))                               # no talk in eval mode, rank 1 may be absent
    if rank == 0: vq(normal(5, 3))
    torch.save(dict(vq.state_dict(), **saved), f'{out}/{rank}.pt')
    dist.destroy_process_group()


@pytest.mark.parametrize('cosine', [False, True])
@pytest.mark.parametrize('masked', [False, True])
def test_two_processes(tmp_path, cosine, masked):
    "Both hold the same codebook, also after starts and restarts, from the sum of their batches."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    mp.spawn(one_of_two, (port, str(tmp_path), cosine, masked), nprocs=2)
    a, b = (torch.load(tmp_path/f'{i}.pt', weights_only=True) for i in (0, 1))
    for key in a: assert torch.equal(a[key], b[key]), key
    assert a['counts'].isfinite().all() and a['sums'].isfinite().all()
    assert a['counts'].sum() > (20 if masked else 40)     # of 64 rows a batch, not 32
    assert torch.equal(a['counts'], a['counts11'])        # the bad batch was skipped
    assert a['started'] and (a['codebook0'] - a['codebook11']).abs().max() > .1
    for i in range(12):                                   # what is logged is that of both together
        rows, masks = zip(*(half(i, r, masked) for r in (0, 1)))
        rows = torch.cat(rows)[torch.cat(masks) if masked else slice(None)]
        assert torch.allclose(a[f'fsq.usage{i}'], FSQ((3, 3, 3)).eval()(rows)[2]['usage'])
    assert torch.equal(a['counts4'], a['counts5']) == masked


def test_two_processes_are_one():
    "Without restarts, two halves move the codebook as the whole batch does."
    whole = VectorQuantizer(8, 3, kmeans=False, restart=0, decay=.8)
    start = whole.state_dict()
    halves = VectorQuantizer(8, 3, kmeans=False, restart=0, decay=.8)
    halves.load_state_dict(start)
    for i in range(5):
        rows = normal(64, 3, name=i)
        whole(rows)
        parts = [_tally(h, nearest_code(h, halves.codebook)[0], 8) for h in rows.chunk(2)]
        halves.follow(rows, rows[:, 0], *(sum(p) for p in zip(*parts)))
        assert torch.allclose(whole.codebook, halves.codebook, atol=1e-5)
