"Attributions beside Captum's, with its baselines, steps and draws."
import numpy as np
import pytest
import torch

from fmri_ldm.classify import MBConvNet, ResNet3d
from fmri_ldm.saliency import gradient_shap, input_x_gradient, integrated_gradients


@pytest.fixture
def attr():
    return pytest.importorskip('captum').attr


def normal(*shape, name=0):
    "Numbers that single precision holds exactly, in double."
    return torch.randn(*shape, generator=torch.Generator().manual_seed(name)).double()


@pytest.fixture(params=[MBConvNet, ResNet3d])
def net(request):
    "A network with weights that do something."
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = request.param(3, 2)
        for p in net.parameters(): p.data += .1*torch.randn_like(p)
    return net.double().eval()


X, T = normal(4, 2, 7, 6, 5, name=1), torch.tensor([0, 2, 1, 1])


def close(a, b):
    "In double precision; Captum keeps the places on its paths in single."
    return a.dtype == b.dtype == torch.float64 and bool((a - b).abs().max() <= 1e-7*b.abs().max())


def test_input_x_gradient(attr, net):
    ours = input_x_gradient(net, X, T)
    assert ours.abs().max() > 1e-3
    assert close(ours, attr.InputXGradient(net).attribute(X.clone().requires_grad_(), target=T).detach())
    assert not close(ours, attr.InputXGradient(net).attribute(X.clone().requires_grad_(), target=(T + 1) % 3).detach())


@pytest.mark.parametrize('steps', [1, 5, 50])
@pytest.mark.parametrize('kind', ['zero', 'number', 'one', 'each'])
def test_integrated_gradients(attr, net, steps, kind):
    b = dict(zero=0., number=.3, one=normal(1, 2, 7, 6, 5, name=2), each=normal(4, 2, 7, 6, 5, name=3))[kind]
    ours = integrated_gradients(net, X, T, baseline=b, steps=steps)
    theirs = attr.IntegratedGradients(net).attribute(X, baselines=b, target=T, n_steps=steps, method='gausslegendre')
    assert close(ours, theirs.detach())


@pytest.mark.parametrize('noise', [0., .2])
def test_gradient_shap(attr, net, noise, monkeypatch):
    "We listen to Captum's draws and use the same."
    heard, draws, base = {}, 6, normal(3, 2, 7, 6, 5, name=4)
    def listen(where, name, key):
        f = getattr(where, name)
        def spy(*args, **kw):
            heard[key] = f(*args, **kw)
            return heard[key]
        monkeypatch.setattr(where, name, spy)
    listen(np.random, 'uniform', 'place')
    listen(np.random, 'choice', 'which')
    listen(torch, 'normal', 'noise')
    theirs = attr.GradientShap(net).attribute(X, baselines=base, target=T, n_samples=draws, stdevs=noise).detach()
    which = torch.as_tensor(np.asarray(heard['which'])).view(4, draws)
    place = torch.as_tensor(heard['place']).view(4, draws)
    eps = heard['noise'].view(4, draws, *X.shape[1:])
    assert (eps.std() > 0) == (noise > 0)
    ours = gradient_shap(net, X, T, baselines=base, drawn=(which, place, eps))
    assert ours.abs().max() > 1e-3 and close(ours, theirs)
    assert not close(gradient_shap(net, X, T, baselines=base, drawn=(which, place.flip(1), eps)), theirs)
