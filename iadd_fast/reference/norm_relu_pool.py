"""Instance norm, affine, ReLU and 2x2 average pool of a convolution's output: the definition.

For one (image, channel) plane of M pixels, m(.) its mean, ``up`` the transpose of the pool
(0.25 of a pooled value to each of its four pixels; zero in a last odd row or column) ::

    xh = (z - m(z)) r,   r = rsqrt(var(z) + eps),   s = [gamma xh + beta > 0]
    p  = pool(relu(gamma xh + beta))

Without affine gamma = 1 and beta = 0; without pool both ``pool`` and ``up`` are the identity. The
closed forms of the three derivatives stand in the functions. bfloat16 and float16 are storage:
the arithmetic is float32. ``out`` names the tensors to write, in the order returned.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from iadd_fast.reference.precision import widened, widened_or_none
from iadd_fast.reference.written import written

Outputs = tuple[Tensor, Tensor | None, Tensor | None]


def norm_relu_pool(
    z: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    pool: bool,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """``p`` of ``z`` ``[N, C, H, W]``: ``[N, C, H // 2, W // 2]``, or z's shape without pool."""
    y = torch.group_norm(
        widened(z), z.shape[1], widened_or_none(gamma), widened_or_none(beta), eps
    ).relu()
    return written(out, (F.avg_pool2d(y, 2) if pool else y).to(z.dtype))


def norm_relu_pool_backward(
    z: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    dp: Tensor,
    eps: float,
    pool: bool,
    *,
    out: Outputs | None = None,
) -> Outputs:
    """Gradients of ``<dp, p>`` for ``z``, ``gamma`` and ``beta`` (None without affine) ::

    dy = s up(dp);  e = gamma dy;  dz = r (e - m(e) - xh m(e xh))
    dgamma = sum dy xh;  dbeta = sum dy
    """
    xh, r, s, scale = _normalised(z, gamma, beta, eps)
    dy = s * _up(widened(dp), z, pool)
    e = scale * dy
    dz = (r * (e - _mean(e) - xh * _mean(e * xh))).to(z.dtype)
    if gamma is None:
        return _all_written(out, (dz, None, None))
    return _all_written(out, (dz, _channel_sum(dy * xh, gamma), _channel_sum(dy, gamma)))


def norm_relu_pool_tangent(
    z: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    zdot: Tensor,
    gammadot: Tensor | None,
    betadot: Tensor | None,
    eps: float,
    pool: bool,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """The derivative of ``p`` along (zdot, gammadot, betadot); a missing tangent is zero ::

    q = m(xh zdot);  xhdot = r (zdot - m(zdot) - xh q)
    pdot = pool(s (gamma xhdot + gammadot xh + betadot))
    """
    xh, r, s, scale = _normalised(z, gamma, beta, eps)
    ydot = scale * _xh_tangent(xh, r, widened(zdot))
    if gammadot is not None:
        ydot = ydot + _column(gammadot) * xh
    if betadot is not None:
        ydot = ydot + _column(betadot)
    ydot = s * ydot
    return written(out, (F.avg_pool2d(ydot, 2) if pool else ydot).to(z.dtype))


def norm_relu_pool_backward_tangent(
    z: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    dp: Tensor,
    zdot: Tensor,
    gammadot: Tensor | None,
    betadot: Tensor | None,
    dpdot: Tensor | None,
    eps: float,
    pool: bool,
    *,
    out: Outputs | None = None,
    dz: Tensor | None = None,
) -> Outputs:
    """The derivative of the gradients along (zdot, gammadot, betadot, dpdot); missing is zero ::

    dydot = s up(dpdot);  edot = gamma dydot + gammadot dy
    dzdot = -r q dz + r (edot - m(edot) - xhdot m(e xh) - xh m(edot xh + e xhdot))
    dgammadot = sum (dydot xh + dy xhdot);  dbetadot = sum dydot

    ``dz``: also write the gradient for z there, which needs nothing that is not read already.
    """
    xh, r, s, scale = _normalised(z, gamma, beta, eps)
    zdot = widened(zdot)
    xhdot, q = _xh_tangent(xh, r, zdot), _mean(xh * zdot)
    dy = s * _up(widened(dp), z, pool)
    e = scale * dy
    dydot = torch.zeros_like(dy) if dpdot is None else s * _up(widened(dpdot), z, pool)
    edot = scale * dydot
    if gammadot is not None:
        edot = edot + _column(gammadot) * dy
    mean_exh = _mean(e * xh)
    gradient = r * (e - _mean(e) - xh * mean_exh)
    turned = edot - _mean(edot) - xhdot * mean_exh - xh * _mean(edot * xh + e * xhdot)
    dzdot = (r * turned - r * q * gradient).to(z.dtype)
    written(dz, gradient)
    if gamma is None:
        return _all_written(out, (dzdot, None, None))
    dgammadot = _channel_sum(dydot * xh + dy * xhdot, gamma)
    return _all_written(out, (dzdot, dgammadot, _channel_sum(dydot, gamma)))


def _normalised(
    z: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor | float]:
    """``xh``, ``r``, ``s`` and gamma as a column (1 without affine)."""
    z = widened(z)
    centred = z - _mean(z)
    variance = _mean(centred.square())
    # NaN where the variance overflowed: an r of 0 would pass for a plane without spread.
    r = torch.rsqrt(variance + eps) + (variance - variance)
    xh = centred * r
    if gamma is None or beta is None:
        return xh, r, (xh > 0).to(z.dtype), 1.0
    scale = _column(gamma)
    return xh, r, (scale * xh + _column(beta) > 0).to(z.dtype), scale


def _xh_tangent(xh: Tensor, r: Tensor, zdot: Tensor) -> Tensor:
    return r * (zdot - _mean(zdot) - xh * _mean(xh * zdot))


def _mean(planes: Tensor) -> Tensor:
    return planes.mean((2, 3), keepdim=True)


def _column(vector: Tensor) -> Tensor:
    return widened(vector).view(1, -1, 1, 1)


def _channel_sum(planes: Tensor, like: Tensor) -> Tensor:
    return planes.sum((0, 2, 3)).to(like.dtype)


def _up(pooled: Tensor, z: Tensor, pool: bool) -> Tensor:
    if not pool:
        return pooled
    spread = pooled.repeat_interleave(2, 2).repeat_interleave(2, 3) * 0.25
    height, width = z.shape[2] - spread.shape[2], z.shape[3] - spread.shape[3]
    return F.pad(spread, (0, width, 0, height)) if height or width else spread


def _all_written(out: Outputs | None, results: Outputs) -> Outputs:
    if out is None:
        return results
    (dz, dgamma, dbeta), (into, *vectors) = results, out
    if dgamma is None or dbeta is None:
        return written(into, dz), None, None
    return written(into, dz), written(vectors[0], dgamma), written(vectors[1], dbeta)
