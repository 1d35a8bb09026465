"""Light, weather and camera: from the canvas to a photo."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxseg.data.streets.backdrop import Backdrop
from jaxseg.data.streets.camera import Camera
from jaxseg.data.streets.canvas import MATERIALS, Canvas
from jaxseg.data.streets.colours import pick

SCALE = 2
"""The canvas has SCALE x SCALE surface numbers a pixel of the photo (anti-aliasing)."""


@dataclasses.dataclass(frozen=True)
class Light:
    """What the weather and the camera do to colours in [0, 1]."""

    gain: np.ndarray
    """[3]: exposure and colour temperature."""
    gamma: float
    saturation: float
    haze: float
    """Share of light lost a metre."""
    sky: tuple[np.ndarray, np.ndarray, np.ndarray]
    """Colours at the zenith and the horizon, and of the clouds."""
    cloud: tuple[float, float]
    """Threshold (in deviations of the noise; high is clear) and opacity."""
    sun: tuple[float, float]
    """The shift (x, z) of a shadow, for each metre of height."""
    shadow: float
    vignette: float
    noise: float
    blur: float
    """Share of the blurred photo, [0, 1]."""


def sample_light(rng: np.random.Generator) -> Light:
    """Noon, overcast, haze, dusk."""
    dusk, overcast = rng.random() < 0.09, rng.random() < 0.35
    warm = rng.normal(0, 0.045) + (0.06 if dusk else 0)
    exposure = np.exp(rng.normal(0.03, 0.11)) * (0.68 if dusk else 1.0)
    angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 1.8)
    zenith, horizon = pick(rng, "sky"), pick(rng, "sky")
    return Light(
        gain=exposure * np.array([1 + warm, 1 + rng.normal(0, 0.02), 1 - warm]),
        gamma=float(np.exp(rng.normal(0, 0.08))),
        saturation=float(rng.uniform(0.7, 1.2)),
        haze=float(rng.choice([0.0006, 0.002, 0.005]) * rng.uniform(0.5, 1.5)),
        sky=(zenith, 0.6 * horizon + 0.4 * zenith, pick(rng, "sky")),
        cloud=(float(rng.uniform(-0.6, 1.6)), float(rng.uniform(0.3, 0.9))),
        sun=(float(np.cos(angle) * reach), float(np.sin(angle) * reach)),
        shadow=0.1 if overcast or dusk else float(rng.uniform(0.3, 0.58)),
        vignette=float(rng.uniform(0, 0.3)),
        noise=float(rng.uniform(0.003, 0.012)),
        blur=float(rng.uniform(0, 0.5)),
    )


def draw_sky(rng: np.random.Generator, camera: Camera, light: Light) -> np.ndarray:
    """Gradient and clouds, [rows, cols, 3]."""
    _, below = camera.rays()
    height = np.clip(-below / np.float32(0.6 * camera.rows), 0, 1)[..., None]
    zenith, horizon, cloud = (c.astype(np.float32) for c in light.sky)
    sky = horizon + (zenith - horizon) * height
    noise = smooth_noise(rng, below.shape, 5) + 0.5 * smooth_noise(rng, below.shape, 14)
    cover = np.clip((noise - light.cloud[0]) * 1.2, 0, 1)[..., None] * np.float32(light.cloud[1])
    return sky * (1 - cover) + cloud * cover


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> np.ndarray:
    """Interpolated normal noise [rows, cols], `cells` cells over the height."""
    from PIL import Image

    rows, cols = shape
    grid = rng.standard_normal((cells + 1, max(2, round(cells * cols / rows)) + 1), dtype=np.float32)
    return np.asarray(Image.fromarray(grid).resize((cols, rows), Image.Resampling.BICUBIC))


def develop(
    rng: np.random.Generator, canvas: Canvas, backdrop: Backdrop, light: Light
) -> tuple[np.ndarray, np.ndarray]:
    """(photo [rows / SCALE, cols / SCALE, 3] uint8, Cityscapes label ids of the same size, uint8)."""
    ids, shadow, colours, labels, materials, depths = canvas.result()
    thing = ids > 0
    colour = np.where(thing[..., None], colours[ids], backdrop.colour)
    label = np.where(thing, labels[ids], backdrop.label)
    material = np.where(thing, materials[ids], backdrop.material)
    depth = np.where(thing, depths[ids], backdrop.depth)
    shade = (1 - np.float32(light.shadow) * _soft(shadow) * ~thing) * (1 + _texture(rng, material, depth))
    colour = colour * shade[..., None]
    haze = 1 - np.exp(-light.haze * np.minimum(depth, 600))
    haze = np.where(label == 23, 0, haze)[..., None].astype(np.float32)
    colour = colour * (1 - haze) + light.sky[1].astype(np.float32) * haze
    photo = _average(colour)
    return _expose(rng, photo, light), np.ascontiguousarray(label[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE])


def _average(colour: np.ndarray) -> np.ndarray:
    """Means of SCALE x SCALE blocks."""
    total = np.zeros_like(colour[::SCALE, ::SCALE])
    for i in range(SCALE):
        for j in range(SCALE):
            total += colour[i::SCALE, j::SCALE]
    return total / np.float32(SCALE**2)


def _texture(rng: np.random.Generator, material: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Relative brightness [rows, cols] of the grain of materials."""
    rows, cols = material.shape
    strengths = np.array(list(MATERIALS.values()), np.float32)[material]
    fine = rng.standard_normal((rows, cols), dtype=np.float32)
    leafy = smooth_noise(rng, (rows, cols), 72)
    broad = smooth_noise(rng, (rows, cols), 9)
    near = (1 / (1 + depth / 60)).astype(np.float32)
    grain = (strengths[..., 0] * fine + strengths[..., 1] * leafy) * near + strengths[..., 2] * broad
    return np.clip(grain, -0.7, 0.9)


def _soft(shadow: np.ndarray) -> np.ndarray:
    from scipy.ndimage import uniform_filter

    return uniform_filter(shadow, 3)


def _expose(rng: np.random.Generator, photo: np.ndarray, light: Light) -> np.ndarray:
    """Gain, tone curve, vignette, blur, chroma at half resolution (as JPEG keeps it), noise, 8 bits."""
    rows, cols = photo.shape[:2]
    y, x = np.linspace(-1, 1, rows, dtype=np.float32)[:, None], np.linspace(-1, 1, cols, dtype=np.float32)
    photo = photo * light.gain.astype(np.float32) * (1 - light.vignette * (x * x + y * y) / 2)[..., None]
    photo = np.clip(photo, 0, 1) ** np.float32(light.gamma)
    padded = np.pad(photo, ((1, 1), (1, 1), (0, 0)), mode="edge")
    blurred = (padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] + 2 * photo) / 6
    photo = photo + light.blur * (blurred - photo)
    luma = photo @ np.array([0.299, 0.587, 0.114], np.float32)
    chroma = photo - luma[..., None]
    chroma = (chroma + np.roll(chroma, 1, 0) + np.roll(chroma, 1, 1) + np.roll(chroma, 1, (0, 1))) / 4
    photo = luma[..., None] + light.saturation * chroma
    noise = light.noise * rng.standard_normal(photo.shape, dtype=np.float32)
    return np.clip(np.rint((photo + noise) * 255), 0, 255).astype(np.uint8)
