"""Pipelines of U-Nets, and those that are another's folder under a further class."""

# pyright: reportArgumentType=false, reportPrivateImportUsage=false

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from warnings import catch_warnings, simplefilter

import diffusers
import transformers
from diffusers.models.unets.unet_stable_cascade import StableCascadeUNet
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from torch import nn

from support.text import BETAS, PROMPTS, autoencoder, network, write_sd, write_sdxl
from support.text_transformers import drawn_anew, write_flux, write_pixart, write_sd3
from tiny.parts import autoencoder_8, quantized
from tiny.registry import Writer, pipeline, written
from tiny.text import clip, t5

Components = dict[str, Any]

SIZE = {"height": 16, "width": 16}


UNCHECKED: Components = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
"""Without the network that looks for unsafe images."""


def derived(name: str, writer: Writer, components: Components | None = None, **call: Any) -> None:  # noqa: ANN401
    """Enter a pipeline that has the components of another, and some further ones."""

    def write(folder: Path, prompts: Sequence[str] = PROMPTS) -> None:
        writer(folder, prompts)
        getattr(diffusers, name).from_pretrained(folder, **components or {}).save_pretrained(folder)

    written(name, write, **call)


for _name in (
    "StableDiffusionPAGPipeline",
    "StableDiffusionSAGPipeline",
    "SemanticStableDiffusionPipeline",
):
    derived(_name, write_sd, **SIZE)
derived("StableDiffusionPanoramaPipeline", write_sd, height=64, width=64)
derived("StableDiffusionAttendAndExcitePipeline", write_sd, **SIZE, token_indices=[[1], [2]], attn_res=(4, 4))
derived("StableDiffusionXLPAGPipeline", write_sdxl, **SIZE)
derived("StableDiffusion3PAGPipeline", write_sd3, {"pag_applied_layers": ["blocks.0"]}, **SIZE, max_sequence_length=32)
derived("PixArtAlphaPipeline", write_pixart, **SIZE, max_sequence_length=32, use_resolution_binning=False)
derived("PixArtSigmaPAGPipeline", write_pixart, **SIZE, max_sequence_length=32, use_resolution_binning=False)
derived("FluxKontextPipeline", write_flux, **SIZE, max_sequence_length=32, max_area=256, _auto_resize=False)


def diffusion_components(prompts: Sequence[str], unet: nn.Module) -> Components:
    """Stable Diffusion's, around another network."""
    encoder, words = clip(prompts)
    return {
        "vae": autoencoder(),
        "text_encoder": encoder,
        "tokenizer": words,
        "unet": unet,
        "scheduler": diffusers.DDIMScheduler(**BETAS, clip_sample=False, steps_offset=1),
    }


@pipeline("LatentConsistencyModelPipeline", **SIZE)
def consistency(prompts: Sequence[str]) -> Components:
    """Stable Diffusion as a consistency model, whose network takes an embedded guidance scale."""
    unet = network(16, time_cond_proj_dim=32)
    scheduler = diffusers.LCMScheduler(**BETAS)
    return {**diffusion_components(prompts, unet), **UNCHECKED, "scheduler": scheduler}


def motion_adapter(**more: Any) -> diffusers.MotionAdapter:  # noqa: ANN401
    """Attention over frames."""
    return diffusers.MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=2,
        **more,
    )


@pipeline("AnimateDiffPipeline", **SIZE, num_frames=2)
def animate_diff(prompts: Sequence[str]) -> Components:
    """Stable Diffusion with attention over frames."""
    unet = diffusers.UNetMotionModel.from_unet2d(drawn_anew(network(16)), motion_adapter())
    scheduler = diffusers.DDIMScheduler(beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=False)
    return {**diffusion_components(prompts, unet), "motion_adapter": motion_adapter(), "scheduler": scheduler}


pipeline("AnimateDiffPAGPipeline", **SIZE, num_frames=2)(animate_diff)


@pipeline("TextToVideoSDPipeline", **SIZE, num_frames=2)
def text_to_video(prompts: Sequence[str]) -> Components:
    """ModelScope's U-Net of three dimensions."""
    unet = diffusers.UNet3DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=2,
    )
    return diffusion_components(prompts, unet)


@pipeline("IFPipeline", **SIZE, output_type="pt")
def deepfloyd(prompts: Sequence[str]) -> Components:
    """DeepFloyd IF's first stage: pixels, and a variance."""
    encoder, words = t5(16, prompts)
    words.model_max_length = 77
    return {
        "tokenizer": words,
        "text_encoder": encoder,
        "unet": diffusers.UNet2DConditionModel(
            sample_size=16,
            in_channels=3,
            out_channels=6,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            cross_attention_dim=16,
            encoder_hid_dim=16,
            encoder_hid_dim_type="text_proj",
            attention_head_dim=4,
            addition_embed_type="text",
            addition_embed_type_num_heads=2,
            norm_num_groups=4,
            resnet_time_scale_shift="scale_shift",
            time_embedding_type="positional",
            act_fn="gelu",
            class_embed_type=None,
        ),
        "scheduler": diffusers.DDPMScheduler(
            beta_schedule="squaredcos_cap_v2", thresholding=True, dynamic_thresholding_ratio=0.95, sample_max_value=1.5
        ),
        "watermarker": None,
        **UNCHECKED,
    }


@pipeline("Kandinsky3Pipeline", height=64, width=64)
def kandinsky_3(prompts: Sequence[str]) -> Components:
    """Kandinsky 3."""
    encoder, words = t5(16, prompts)
    return {
        "tokenizer": words,
        "text_encoder": encoder,
        "unet": diffusers.Kandinsky3UNet(
            in_channels=4,
            time_embedding_dim=16,
            groups=2,
            attention_head_dim=4,
            layers_per_block=3,
            block_out_channels=(8, 16),
            cross_attention_dim=16,
            encoder_hid_dim=16,
        ),
        "scheduler": diffusers.DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, steps_offset=1, beta_schedule="squaredcos_cap_v2"
        ),
        "movq": quantized(),
    }


@pipeline("LDMTextToImagePipeline", height=64, width=64, output_type="np")
def latent_diffusion(prompts: Sequence[str]) -> Components:
    """The first latent diffusion model of text, with a text encoder of its own."""
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    words = clip(prompts, length=77)[1]
    sizes = {"encoder_layers": 2, "encoder_ffn_dim": 32, "encoder_attention_heads": 2, "head_dim": 8, "d_model": 16}
    return {
        "vqvae": autoencoder_8(),
        "bert": LDMBertModel(LDMBertConfig(vocab_size=len(words), **sizes)),
        "tokenizer": words,
        "unet": network(16),
        "scheduler": diffusers.DDIMScheduler(**BETAS, clip_sample=False),
    }


def prior_components(prompts: Sequence[str]) -> Components:
    """The prior of unCLIP's kind that Kandinsky 2.2 has, which makes an image's embedding of a prompt."""
    encoder, words = clip(prompts, projection=True)
    vision = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    prior = diffusers.PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=8,
        embedding_dim=16,
        num_layers=2,
        num_embeddings=12,
        clip_embed_dim=16,
    )
    return {
        "prior": prior,
        "image_encoder": transformers.CLIPVisionModelWithProjection(vision),
        "text_encoder": encoder,
        "tokenizer": words,
        "scheduler": diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0
        ),
        "image_processor": transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16),
    }


@pipeline("KandinskyV22PriorPipeline", output_type="pt")
def kandinsky_prior(prompts: Sequence[str]) -> Components:
    """Kandinsky 2.2's prior: embeddings of images in place of images."""
    return prior_components(prompts)


pipeline("KandinskyPriorPipeline", output_type="pt")(prior_components)


@pipeline("KandinskyV22CombinedPipeline", height=64, width=64, prior_num_inference_steps=3)
def kandinsky_22(prompts: Sequence[str]) -> Components:
    """Kandinsky 2.2: a prior, then a decoder."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        encoder_hid_dim=16,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=16,
        addition_embed_type="image",
        attention_head_dim=4,
        norm_num_groups=4,
        resnet_time_scale_shift="scale_shift",
    )
    prior = {f"prior_{part}": component for part, component in prior_components(prompts).items()}
    return {
        "unet": unet,
        "scheduler": diffusers.DDPMScheduler(beta_schedule="linear", beta_start=0.00085, beta_end=0.012),
        "movq": quantized(32, norm_type="spatial"),
        **prior,
    }


@pipeline("AmusedPipeline", **SIZE)
def amused(prompts: Sequence[str]) -> Components:
    """aMUSEd: tokens that are unmasked."""
    encoder, words = clip(prompts, projection=True)
    return {
        "vqvae": quantized(),
        "tokenizer": words,
        "text_encoder": encoder,
        "transformer": diffusers.UVit2DModel(
            hidden_size=16,
            cond_embed_dim=16,
            encoder_hidden_size=16,
            block_out_channels=16,
            num_res_blocks=1,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            micro_cond_encode_dim=2,
            micro_cond_embed_dim=10,
            vocab_size=13,
            codebook_size=12,
        ),
        "scheduler": diffusers.AmusedScheduler(mask_token_id=12),
    }


@pipeline("AnimateDiffSDXLPipeline", **SIZE, num_frames=2)
def animate_diff_xl(prompts: Sequence[str]) -> Components:
    """SDXL with attention over frames."""
    encoder, words = clip(prompts)
    encoder_2, words_2 = clip(prompts, projection=True)
    plane = network(
        32, addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=16 + 6 * 8
    )
    adapter = motion_adapter(use_motion_mid_block=False)
    return {
        "vae": autoencoder(),
        "text_encoder": encoder,
        "tokenizer": words,
        "text_encoder_2": encoder_2,
        "tokenizer_2": words_2,
        "unet": diffusers.UNetMotionModel.from_unet2d(drawn_anew(plane), adapter),
        "motion_adapter": adapter,
        "scheduler": diffusers.DDIMScheduler(
            beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
        ),
    }


@pipeline("StableDiffusionLDM3DPipeline", **SIZE, output_type="np")
def ldm3d(prompts: Sequence[str]) -> Components:
    """Stable Diffusion of images with depth."""
    return {**diffusion_components(prompts, network(16)), **UNCHECKED, "image_encoder": None}


@pipeline("StableDiffusionGLIGENPipeline", **SIZE, gligen_phrases=["a seven"], gligen_boxes=[[0.1, 0.2, 0.6, 0.7]])
def gligen(prompts: Sequence[str]) -> Components:
    """Stable Diffusion that can be told where things are."""
    unet = network(16, attention_type="gated")
    return {**diffusion_components(prompts, unet), **UNCHECKED}


@pipeline("StableUnCLIPPipeline", **SIZE, prior_num_inference_steps=3)
def stable_unclip(prompts: Sequence[str]) -> Components:
    """Stable Diffusion that sees the embedding of an image, which a prior makes of the prompt."""
    encoder, words = clip(prompts)
    prior = prior_components(prompts)
    unet = network(16, class_embed_type="projection", projection_class_embeddings_input_dim=32)
    return {
        "prior_tokenizer": prior["tokenizer"],
        "prior_text_encoder": prior["text_encoder"],
        "prior": prior["prior"],
        "prior_scheduler": prior["scheduler"],
        "image_normalizer": StableUnCLIPImageNormalizer(embedding_dim=16),
        "image_noising_scheduler": diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        "tokenizer": words,
        "text_encoder": encoder,
        "unet": unet,
        "scheduler": diffusers.DDIMScheduler(**BETAS, prediction_type="v_prediction", clip_sample=False),
        "vae": autoencoder(),
    }


CASCADE: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "timestep_ratio_embedding_dim": 16,
    "conditioning_dim": 16,
    "block_out_channels": (16, 16),
    "num_attention_heads": (2, 2),
    "down_num_layers_per_block": (1, 1),
    "up_num_layers_per_block": (1, 1),
    "clip_text_pooled_in_channels": 16,
    "dropout": (0.0, 0.0),
}
"""Of Stable Cascade's networks."""


def cascade_prior(prompts: Sequence[str]) -> Components:
    """Stable Cascade's first stage."""
    encoder, words = clip(prompts, projection=True)
    prior = StableCascadeUNet(**CASCADE, clip_text_in_channels=16, clip_image_in_channels=16, switch_level=(False,))
    return {
        "tokenizer": words,
        "text_encoder": encoder,
        "prior": prior,
        "scheduler": diffusers.DDPMWuerstchenScheduler(),
        "feature_extractor": None,
        "image_encoder": None,
    }


@pipeline("StableCascadePriorPipeline", height=256, width=256, output_type="pt")
def cascade_prior_alone(prompts: Sequence[str]) -> Components:
    """Stable Cascade's first stage: latents of 16 channels, a forty-second of the size of the images."""
    return {**cascade_prior(prompts), "resolution_multiple": 32.0}


def write_kolors(folder: Path, prompts: Sequence[str] = PROMPTS) -> None:
    """Kolors: SDXL's network with the language model ChatGLM, whose tokenizer keeps its pieces in a file."""
    from sentencepiece import SentencePieceTrainer

    with catch_warnings():
        simplefilter("ignore", DeprecationWarning)  # of torch.jit.script, by which ChatGLM is written
        from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
    from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer

    with TemporaryDirectory() as made:
        pieces = {"vocab_size": 60, "hard_vocab_limit": False, "minloglevel": 2, "model_prefix": f"{made}/pieces"}
        SentencePieceTrainer.Train(sentence_iterator=iter(prompts), **pieces)
        words = ChatGLMTokenizer(f"{made}/pieces.model")
        config = ChatGLMConfig(
            num_layers=2,
            padded_vocab_size=len(words) + 16,
            hidden_size=16,
            ffn_hidden_size=32,
            kv_channels=8,
            num_attention_heads=2,
            seq_length=64,
            multi_query_attention=True,
            multi_query_group_num=1,
            add_qkv_bias=True,
            original_rope=True,
        )
        encoder = ChatGLMModel(config).eval()
        for name, parameter in encoder.named_parameters():  # which are not set by diffusers
            nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.1)
        diffusers.KolorsPipeline(
            vae=autoencoder(),
            text_encoder=encoder,
            tokenizer=words,
            unet=network(
                16,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=16 + 6 * 8,
            ),
            scheduler=diffusers.EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading"),
        ).save_pretrained(folder)


written("KolorsPipeline", write_kolors, **SIZE, max_sequence_length=64)
derived("KolorsPAGPipeline", write_kolors, **SIZE, max_sequence_length=64)
