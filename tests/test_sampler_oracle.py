"""Every sampler beside diffusers' and MONAI's schedulers, state by state, on the same times.

The model is the exact denoiser of a Gaussian mixture, in float64. Both libraries build their tables in
float32; where a scheduler lets us, we hand it the same table in float64, so that a difference is one of
the rule. diffusers' DPM-Solver and flow schedulers compute in float32 whatever they are given. No
scheduler has a midpoint rule like ours; the notebook's laws are its test.
"""
import numpy as np
import pytest
import torch

from fmri_ldm.core import generator
from fmri_ldm.diffusion import MixtureDenoiser, from_x0
from fmri_ldm.samplers import follow, invert, sample, time_grid
from fmri_ldm.schedules import ddpm_linear, flow

D, N, TOL = torch.float64, 20, 1e-5
START = torch.randn(6, 2, dtype=D, generator=generator(0))
BETAS = torch.linspace(1e-4, 2e-2, 1000, dtype=D)


@pytest.fixture
def diffusers(): return pytest.importorskip('diffusers')


@pytest.fixture
def monai(): return pytest.importorskip('monai.networks.schedulers')


def world(schedule):
    means = torch.tensor([[1.5, 0], [-1, 1], [-.5, -1.2]], dtype=D)
    return MixtureDenoiser(schedule, means, torch.tensor([.4, .3, .5], dtype=D), torch.zeros(3))


def mine(schedule, method, ts, **kw):
    "States at the times ts, the last included."
    seen = []
    end = follow(world(schedule), START, ts, method=method, callback=lambda i, t, x, x0: seen.append(x), **kw)
    return seen + [end]


def theirs(schedule, ts, step):
    "States of a scheduler; step(x0, x, i) is its step from ts[i]."
    model, states = world(schedule), [START]
    for i, t in enumerate(ts[:-1]):
        x = states[-1]
        states.append(step(model(x, x.new_full((len(x),), t.item())), x, i))
    return states


def agree(a, b, tol=TOL):
    "Largest distance over all states; it must be below tol, and the states must move."
    gap = max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))
    assert gap < tol and (a[0] - a[-1]).abs().max() > .1
    return gap


def exact(scheduler, n=1000, betas=BETAS):
    "The scheduler with its tables in float64."
    scheduler.betas, scheduler.alphas = betas, 1 - betas
    scheduler.alphas_cumprod = (1 - betas).cumprod(0)
    return scheduler


def chain(ks):
    "Our times of the indices ks of a table of 1,000, and 0."
    return torch.cat([(torch.as_tensor(ks).to(D) + 1)/1000, torch.zeros(1, dtype=D)])


def same(a, b): return torch.allclose(a.to(D), b, rtol=0, atol=1e-12)


# diffusers: DDPM and DDIM -----------------------------------------------------------------------

@pytest.mark.parametrize('spacing', ['uniform', 'leading'])
@pytest.mark.parametrize('clip', [None, 1.])
def test_ddpm(diffusers, spacing, clip):
    sch = exact(diffusers.DDPMScheduler(timestep_spacing={'uniform': 'trailing'}.get(spacing, spacing),
                                        prediction_type='sample', clip_sample=clip is not None))
    sch.set_timesteps(N)
    s = ddpm_linear()
    ts = time_grid(s, N, spacing=spacing)
    assert same(chain(sch.timesteps), ts)       # index k of the table is our (k+1)/1000
    g = generator(1)
    want = theirs(s, ts, lambda x0, x, i: sch.step(x0, sch.timesteps[i], x, generator=g).prev_sample)
    # they draw once more at their last step when its index is not 0, with a variance of 1e-20
    agree(mine(s, 'ddpm', ts, clip=clip and (-clip, clip), generator=generator(1)), want, 1e-9)


@pytest.mark.parametrize('eta', [0., .5, 1.])
@pytest.mark.parametrize('spacing', ['uniform', 'leading'])
@pytest.mark.parametrize('clip', [None, 1.])
def test_ddim(diffusers, eta, spacing, clip):
    sch = exact(diffusers.DDIMScheduler(timestep_spacing={'uniform': 'trailing'}.get(spacing, spacing),
                                        prediction_type='sample', clip_sample=clip is not None))
    sch.set_timesteps(N)
    s = ddpm_linear()
    ts, g = time_grid(s, N, spacing=spacing), generator(1)
    assert same(chain(sch.timesteps), ts)
    # we take the noise from the clipped answer, so that the two still make xt; they do it when asked
    want = theirs(s, ts, lambda x0, x, i: sch.step(x0, int(sch.timesteps[i]), x, eta=eta, generator=g,
                                                   use_clipped_model_output=True).prev_sample)
    agree(mine(s, 'ddim', ts, eta=eta, clip=clip and (-clip, clip), generator=generator(1)), want, 1e-9)


def test_ddim_as_it_comes(diffusers):
    "With diffusers' own float32 table the difference is that table's rounding."
    sch = diffusers.DDIMScheduler(timestep_spacing='trailing', prediction_type='sample', clip_sample=False)
    sch.set_timesteps(N)
    s = ddpm_linear()
    ts = time_grid(s, N)
    agree(mine(s, 'ddim', ts),
          theirs(s, ts, lambda x0, x, i: sch.step(x0, int(sch.timesteps[i]), x).prev_sample))


def test_inversion(diffusers):
    "DDIMInverseScheduler, from its first time to its last."
    sch = exact(diffusers.DDIMInverseScheduler(timestep_spacing='leading', prediction_type='sample',
                                               clip_sample=False))
    sch.set_timesteps(N)                                              # 0, 50, ... 950
    s, model = ddpm_linear(), world(ddpm_linear())
    ts = (sch.timesteps + 1).to(D)/1000
    ours = mine(s, 'ddim', ts)
    # its step named k goes from k - 50 to k; the model's answer belongs to where the step begins
    x = START
    for i, k in enumerate(sch.timesteps[1:]):
        x = sch.step(model(x, x.new_full((len(x),), ts[i].item())), int(k), x).prev_sample
        assert (x - ours[i + 1]).abs().max() < 1e-9


# diffusers: multistep ---------------------------------------------------------------------------

def multistep(scheduler, s, method, noise=None, table=None, tol=TOL, **kw):
    "Their states and ours on the same times, with their table or ours; fresh noise is handed to both."
    scheduler.set_timesteps(N)
    ts = chain(scheduler.timesteps)
    level = s.sigma(ts)/s.alpha(ts)
    assert torch.allclose(scheduler.sigmas.to(D), level, rtol=1e-4)   # they round theirs to float32
    if table == 'float64': scheduler.sigmas = level
    extra = (lambda i: {}) if noise is None else (lambda i: dict(variance_noise=noise[i]))
    want = theirs(s, ts, lambda x0, x, i: scheduler.step(x0, scheduler.timesteps[i], x, **extra(i)).prev_sample)
    return agree(mine(s, method, ts, **kw), want, tol)


@pytest.mark.parametrize('spacing', ['trailing', 'linspace', 'leading'])
def test_dpmpp_2m(diffusers, spacing):
    # with its own table and in float32, to which its step casts the sample
    sch = diffusers.DPMSolverMultistepScheduler(timestep_spacing=spacing, prediction_type='sample')
    multistep(sch, ddpm_linear(), 'dpmpp_2m')


def test_dpmpp_2m_sde(diffusers):
    sch = diffusers.DPMSolverMultistepScheduler(timestep_spacing='trailing', prediction_type='sample',
                                                algorithm_type='sde-dpmsolver++')
    g = generator(2)
    noise = [torch.randn(START.shape, dtype=D, generator=g) for _ in range(N)]
    multistep(sch, ddpm_linear(), 'dpmpp_2m_sde', noise, generator=generator(2))


@pytest.mark.parametrize('spacing', ['trailing', 'linspace', 'leading'])
@pytest.mark.parametrize('table, tol', [('float32', TOL), ('float64', 1e-9)])
def test_unipc(diffusers, spacing, table, tol):
    # order 2, bh2, x0 predicted: the defaults
    sch = diffusers.UniPCMultistepScheduler(timestep_spacing=spacing, prediction_type='sample')
    multistep(sch, ddpm_linear(), 'unipc', table=table, tol=tol)


def test_karras_and_even_logsnr(diffusers):
    "The levels of 'karras' and 'logsnr' are theirs, between our ends."
    s, sch = ddpm_linear(), diffusers.DPMSolverMultistepScheduler()
    for spacing, theirs in (('karras', sch._convert_to_karras), ('logsnr', sch._convert_to_exponential)):
        ts = time_grid(s, N, spacing=spacing)[1:-1]
        level = (s.sigma(ts)/s.alpha(ts)).numpy()
        want = theirs(np.array([np.exp(4.5), level[-1]]), N)[1:]      # 90 to 0.0025; the first is start's
        assert np.abs(np.log(level/want)).max() < 1e-9


# diffusers: flow --------------------------------------------------------------------------------

@pytest.mark.parametrize('method', ['euler', 'ddim'])
@pytest.mark.parametrize('shift', [1., 3.])
def test_flow_euler(diffusers, method, shift):
    sch = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)      # the shift moves given sigmas, too
    sch.set_timesteps(sigmas=time_grid(flow(), N)[:-1].tolist())
    s = flow(shift)
    ts = time_grid(s, N)
    assert torch.allclose(sch.sigmas.to(D), ts, atol=1e-6)
    def step(x0, x, i):
        v = from_x0(x0, x, ts[i].expand(len(x)), s, 'flow')
        return sch.step(v, sch.timesteps[i], x).prev_sample
    agree(mine(s, method, ts), theirs(s, ts, step))


def test_flow_heun(diffusers):
    "Its own times: 1 to 0.001, evenly, then 0."
    sch, s = diffusers.FlowMatchHeunDiscreteScheduler(), flow()
    sch.set_timesteps(N)
    ts, model = torch.cat([torch.linspace(1, 1e-3, N), torch.zeros(1)]).to(D), world(s)
    ours, x, states = mine(s, 'heun', ts), START, [START]
    for k, t in enumerate(sch.timesteps):                             # two of its steps are one of ours
        now = (t/1000).to(D).expand(len(x))
        x = sch.step(from_x0(model(x, now), x, now, s, 'flow'), t, x).prev_sample
        if k % 2 or k == len(sch.timesteps) - 1: states.append(x)
    agree(ours, states)


@pytest.mark.parametrize('name, method', [('DPMSolverMultistepScheduler', 'dpmpp_2m'),
                                          ('UniPCMultistepScheduler', 'unipc')])
def test_flow_multistep(diffusers, name, method):
    """On the flow schedule they start just below 1, where log-SNR is finite. So do we here; from exactly 1
    ours is DDIM until two finite log-SNRs are known, which is another rule and not compared."""
    sch = getattr(diffusers, name)(use_flow_sigmas=True, prediction_type='sample')
    sch.set_timesteps(N)
    s, ts = flow(), time_grid(flow(), N, start=.999)
    sch.sigmas = ts.clone()
    want = theirs(s, ts, lambda x0, x, i: sch.step(x0, sch.timesteps[i], x).prev_sample)
    agree(mine(s, method, ts), want)


# MONAI ------------------------------------------------------------------------------------------

def test_monai_ddpm(monai):
    "All steps of a chain of 50: MONAI's step always goes from k to k-1, so fewer steps cannot be compared."
    betas = torch.linspace(2e-3, .3, 50, dtype=D)
    sch, s = monai.DDPMScheduler(50, clip_sample=False, prediction_type='sample'), ddpm_linear(2e-3, .3, 50)
    sch = exact(sch, 50, betas)
    sch.one = torch.ones((), dtype=D)
    ts, g = torch.arange(50, -1, -1).to(D)/50, generator(3)
    want = theirs(s, ts, lambda x0, x, i: sch.step(x0, 49 - i, x, generator=g)[0])
    agree(mine(s, 'ddpm', ts, generator=generator(3)), want, 1e-9)


@pytest.mark.parametrize('eta', [0., .5, 1.])
def test_monai_ddim(monai, eta):
    """On trailing times, which its step assumes. Its own set_timesteps gives others (999, 946, ...) than
    those where its step lands (949, ...): there it cannot agree with a rule that asks where it stands."""
    sch, s = exact(monai.DDIMScheduler(clip_sample=False, prediction_type='sample')), ddpm_linear()
    sch.set_timesteps(N)
    assert sch.timesteps[1] == 946
    ts, g = time_grid(s, N), generator(4)
    want = theirs(s, ts, lambda x0, x, i: sch.step(x0, 999 - 50*i, x, eta=eta, generator=g)[0])
    agree(mine(s, 'ddim', ts, eta=eta, generator=generator(4)), want, 1e-9)


def test_monai_ddim_reversed(monai):
    sch, s = exact(monai.DDIMScheduler(clip_sample=False, prediction_type='sample')), ddpm_linear()
    sch.set_timesteps(N)
    ts = chain(range(49, 1000, 50))[:-1]                              # rising
    want = theirs(s, ts, lambda x0, x, i: sch.reversed_step(x0, 49 + 50*i, x)[0])
    agree(mine(s, 'ddim', ts), want, 1e-9)


@pytest.mark.parametrize('method', ['euler', 'ddim'])
def test_monai_rflow(monai, method):
    "Its velocity points from noise to data: the other sign."
    sch, s = monai.RFlowScheduler(), flow()
    sch.set_timesteps(N)
    ts = time_grid(s, N)
    ks = torch.cat([sch.timesteps, torch.zeros(1, dtype=torch.long)])
    assert same(ks.to(D)/1000, ts)
    def step(x0, x, i):
        return sch.step(-from_x0(x0, x, ts[i].expand(len(x)), s, 'flow'), int(ks[i]), x, int(ks[i + 1]))[0]
    agree(mine(s, method, ts), theirs(s, ts, step), 1e-9)


# ours -------------------------------------------------------------------------------------------

def test_sample_and_invert_are_this_loop():
    s = flow()
    ts = time_grid(s, N)
    assert torch.equal(sample(world(s), START, num_inference_steps=N), mine(s, 'heun', ts)[-1])
    assert torch.equal(invert(world(s), START, num_inference_steps=N), mine(s, 'ddim', ts.flip(0))[-1])
