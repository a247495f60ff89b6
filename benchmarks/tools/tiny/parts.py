"""Schedulers and autoencoders that several pipelines share."""

# pyright: reportArgumentType=false, reportPrivateImportUsage=false

from typing import Any

import diffusers


def flow(**config: Any) -> diffusers.FlowMatchEulerDiscreteScheduler:  # noqa: ANN401
    """The scheduler of a rectified flow."""
    return diffusers.FlowMatchEulerDiscreteScheduler(**config)


def wan_autoencoder(**more: Any) -> diffusers.AutoencoderKLWan:  # noqa: ANN401
    """Latents of 4 channels, an eighth of the size of the frames."""
    return diffusers.AutoencoderKLWan(
        base_dim=3,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.8, 1.0, 2.0],
        **more,
    )


def cogvideox_autoencoder() -> diffusers.AutoencoderKLCogVideoX:
    """Latents of 4 channels, an eighth of the size of the frames."""
    return diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )


def hunyuan_autoencoder() -> diffusers.AutoencoderKLHunyuanVideo:
    """Latents of 4 channels, an eighth of the size of the frames."""
    return diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )


def autoencoder_8(channels: int = 4, **more: Any) -> diffusers.AutoencoderKL:  # noqa: ANN401
    """Latents of some channels, an eighth of the size of the images."""
    return diffusers.AutoencoderKL(
        block_out_channels=(4,) * 4,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=channels,
        norm_num_groups=2,
        sample_size=64,
        **more,
    )


def deep_compression() -> diffusers.AutoencoderDC:
    """Latents of 4 channels, a quarter of the size of the images."""
    return diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )


def qwen_autoencoder() -> diffusers.AutoencoderKLQwenImage:
    """Latents of 4 channels, an eighth of the size of the images."""
    return diffusers.AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.8, 1.0, 2.0],
    )


def quantized(width: int = 8, **more: Any) -> diffusers.VQModel:  # noqa: ANN401
    """A MoVQ autoencoder of latents of 4 channels."""
    return diffusers.VQModel(
        block_out_channels=(width, width),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        num_vq_embeddings=12,
        vq_embed_dim=4,
        **more,
    )
