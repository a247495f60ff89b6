r"""The stock scheduler of a rectified flow, so configured that `set_timesteps(N)` by itself visits our grid.

Ours is sigma_i = f_s(1 - i / N), i = 0, ..., N - 1, and then 0, with f_s(u) = s u / (1 + (s - 1) u) for a shift s (see
`progdist.diffusion.schedule.RectifiedFlow`). Of T timesteps, FlowMatchEulerDiscreteScheduler with shift S spaces u
evenly from 1 to f_S(1 / T), shifts that by S, and stretches what comes out until it ends at `shift_terminal`:

    1 - sigma_i = k (1 - f_S(1 - i c)) = k i c / (S - (S - 1) i c),    c = (1 - f_S(1 / T)) / (N - 1)

Ours is 1 - sigma_i = i / (s N - (s - 1) i). Both end at the same sigma_{N-1} if shift_terminal = f_s(1 / N), and are
then the same at every i if S / ((S - 1) c) = s N / (s - 1), that is S (s N c - s + 1) = s N c. With
c = a / (T + S - 1) and a = (T - 1) / (N - 1) that is a quadratic equation,

    (s - 1) S^2 - b S + s N a = 0,    b = s N a - (s - 1) (T - 1) = (T - 1) (1 + s / (N - 1))

of which the root near s is S = 2 s N a / (b + sqrt(b^2 - 4 (s - 1) s N a)). For s = 1 it is 1. It is real for every s
where T > 4 N (N - 1), and at every N for s up to (1 + sqrt(T)) / 2, about 16 for T = 1000.
"""

import math

from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler


def flow_scheduler(shift: float, timesteps: int, steps: int | None) -> FlowMatchEulerDiscreteScheduler:
    """The scheduler of a rectified flow.

    Args:
        shift: s.
        timesteps: T.
        steps: N, the count for which `set_timesteps(N)` visits our grid. For None, and where the equation has no root,
            `set_timesteps(sigmas=[1, (N - 1) / N, ..., 1 / N])` does, for every N.
    """
    given = stock_shift(shift, timesteps, steps) if steps else None
    if steps is None or given is None:
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=timesteps, shift=shift)
    if steps == 1:
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=timesteps, shift=given)
    last = shift / (steps + shift - 1)
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=timesteps, shift=given, shift_terminal=last)


def stock_shift(shift: float, timesteps: int, steps: int) -> float | None:
    """S of the equation above; None where it has no root."""
    if steps == 1 or shift == 1:
        return shift  # at one step there is one sigma, 1
    a = (timesteps - 1) / (steps - 1)
    b = (timesteps - 1) * (1 + shift / (steps - 1))
    product = shift * steps * a
    discriminant = b**2 - 4 * (shift - 1) * product
    return 2 * product / (b + math.sqrt(discriminant)) if discriminant >= 0 else None
