"""Text-to-audio pipelines."""

# pyright: reportArgumentType=false, reportPrivateImportUsage=false

from collections.abc import Sequence
from typing import Any

import diffusers
import transformers
from diffusers.models.autoencoders.autoencoder_longcat_audio_dit import LongCatAudioDiTVae
from diffusers.models.transformers.transformer_longcat_audio_dit import LongCatAudioDiTTransformer
from diffusers.pipelines.ace_step.modeling_ace_step import AceStepConditionEncoder
from diffusers.pipelines.audioldm2.modeling_audioldm2 import AudioLDM2ProjectionModel, AudioLDM2UNet2DConditionModel
from diffusers.pipelines.stable_audio.modeling_stable_audio import StableAudioProjectionModel
from diffusers.pipelines.stable_audio_3 import StableAudio3DurationEmbedder
from diffusers.utils.import_utils import is_torchsde_available

from support.text import BETAS
from tiny.registry import pipeline
from tiny.text import SIZES, byte_pairs, chat_tokenizer, decoder, gemma, t5, templates, umt5

Components = dict[str, Any]


@pipeline("StableAudioPipeline", audio_end_in_s=2.0)
def stable_audio(prompts: Sequence[str]) -> Components:
    """Stable Audio Open: v-prediction in EDM's coordinates, latents of (channels, length)."""
    encoder, words = t5(16, prompts)
    words.model_max_length = 32
    return {
        "vae": diffusers.AutoencoderOobleck(
            encoder_hidden_size=6,
            downsampling_ratios=[1, 2],
            decoder_channels=3,
            decoder_input_channels=4,
            audio_channels=2,
            channel_multiples=[2, 4],
            sampling_rate=16,
        ),
        "text_encoder": encoder,
        "projection_model": StableAudioProjectionModel(
            text_encoder_dim=16, conditioning_dim=16, min_value=0, max_value=32
        ),
        "tokenizer": words,
        "transformer": diffusers.StableAudioDiTModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            num_key_value_attention_heads=1,
            cross_attention_dim=16,
            time_proj_dim=16,
            global_states_input_dim=32,
            cross_attention_input_dim=16,
        ),
        "scheduler": diffusers.EDMDPMSolverMultistepScheduler(**STABLE_AUDIO_NOISE),
    }


STABLE_AUDIO_NOISE: dict[str, Any] = {
    "sigma_min": 0.3,
    "sigma_max": 500.0,
    "sigma_data": 1.0,
    "solver_order": 2,
    "prediction_type": "v_prediction",
    "sigma_schedule": "exponential",
}
"""Of Stable Audio Open's scheduler."""


if is_torchsde_available():

    @pipeline("StableAudioPipeline/Cosine", audio_end_in_s=2.0)
    def stable_audio_cosine(prompts: Sequence[str]) -> Components:
        """Stable Audio Open with the stochastic scheduler that it is published with."""
        scheduler = diffusers.CosineDPMSolverMultistepScheduler(**STABLE_AUDIO_NOISE)
        return {**stable_audio(prompts), "scheduler": scheduler}


def roberta_tokenizer(prompts: Sequence[str], length: int = 16) -> transformers.RobertaTokenizer:
    """RoBERTa's tokenizer with byte pairs learned from the prompts."""
    vocabulary, merges = byte_pairs(prompts)
    special = {token: place for place, token in enumerate(("<s>", "<pad>", "</s>", "<unk>", "<mask>"))}
    vocabulary = special | {piece: place + len(special) for piece, place in vocabulary.items()}
    return transformers.RobertaTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)


CLAP: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "projection_dim": 16,
    "max_position_embeddings": 64,
}
"""Of CLAP's text encoder."""


def spectrogram_components() -> Components:
    """What makes sound of latents: an autoencoder of spectrograms of 8 bands, and a vocoder."""
    return {
        "vae": diffusers.AutoencoderKL(
            block_out_channels=(8, 8),
            in_channels=1,
            out_channels=1,
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
        ),
        "vocoder": transformers.SpeechT5HifiGan(
            transformers.SpeechT5HifiGanConfig(
                model_in_dim=8,
                sampling_rate=16_000,
                upsample_initial_channel=16,
                upsample_rates=[2, 2],
                upsample_kernel_sizes=[4, 4],
                resblock_kernel_sizes=[3, 7],
                resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5]],
                normalize_before=False,
                initializer_range=0.3,
            )
        ),
        "scheduler": diffusers.DDIMScheduler(**BETAS, clip_sample=False),
    }


def spectrogram_unet(**more: Any) -> diffusers.UNet2DConditionModel:  # noqa: ANN401
    """A U-Net that takes the embedding of a prompt as its class."""
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=(8, 16),
        attention_head_dim=4,
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=16,
        class_embeddings_concat=True,
        **more,
    )


@pipeline("AudioLDMPipeline", gain=2.0, audio_length_in_s=0.004, output_type="np")
def audio_ldm(prompts: Sequence[str]) -> Components:
    """AudioLDM."""
    words = roberta_tokenizer(prompts)
    config = transformers.ClapTextConfig(**CLAP, vocab_size=len(words))
    return {
        **spectrogram_components(),
        "text_encoder": transformers.ClapTextModelWithProjection(config),
        "tokenizer": words,
        "unet": spectrogram_unet(),
    }


def clap(words: transformers.RobertaTokenizer) -> transformers.ClapModel:
    """CLAP, which also hears."""
    sound = {
        "spec_size": 8,
        "window_size": 4,
        "num_mel_bins": 8,
        "intermediate_size": 37,
        "depths": [1, 1],
        "num_attention_heads": [1, 1],
        "num_hidden_layers": 1,
        "hidden_size": 192,
        "projection_dim": 16,
        "patch_size": 2,
        "patch_stride": 2,
        "patch_embed_input_channels": 4,
    }
    text = {**CLAP, "vocab_size": len(words)}
    return transformers.ClapModel(transformers.ClapConfig(text_config=text, audio_config=sound, projection_dim=16))


@pipeline("AudioLDM2Pipeline", audio_length_in_s=0.004)
def audio_ldm_2(prompts: Sequence[str]) -> Components:
    """AudioLDM 2: a language model writes a part of the condition."""
    words = roberta_tokenizer(prompts)
    encoder, letters = t5(16, prompts)
    letters.model_max_length = 32
    sizes = {"n_embd": 16, "n_head": 2, "n_layer": 2, "vocab_size": 16, "n_positions": 99}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    model.config.max_new_tokens = 8
    return {
        **spectrogram_components(),
        "text_encoder": clap(words),
        "text_encoder_2": encoder,
        "projection_model": AudioLDM2ProjectionModel(text_encoder_dim=16, text_encoder_1_dim=16, langauge_model_dim=16),
        "language_model": model,
        "tokenizer": words,
        "tokenizer_2": letters,
        "feature_extractor": transformers.ClapFeatureExtractor(hop_length=7900),
        "unet": AudioLDM2UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=(16, 16),
            attention_head_dim=4,
        ),
    }


@pipeline("AceStepPipeline", audio_duration=0.64, max_text_length=128, lyrics=["la la", "la"])
def ace_step(prompts: Sequence[str]) -> Components:
    """ACE-Step: text and lyrics in one condition."""
    words = chat_tokenizer(prompts, templates(diffusers.AceStepPipeline))
    encoder = decoder(words, "Qwen3Model")
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rope_theta": 10000.0,
        "sliding_window": 16,
    }
    return {
        "vae": diffusers.AutoencoderOobleck(
            encoder_hidden_size=6,
            downsampling_ratios=[1, 2],
            decoder_channels=3,
            decoder_input_channels=8,
            audio_channels=2,
            channel_multiples=[2, 4],
            sampling_rate=48,
        ),
        "text_encoder": encoder,
        "tokenizer": words,
        "transformer": diffusers.AceStepTransformer1DModel(
            **sizes, num_hidden_layers=2, in_channels=24, audio_acoustic_hidden_dim=8, patch_size=2
        ),
        "condition_encoder": AceStepConditionEncoder(
            **sizes,
            text_hidden_dim=16,
            timbre_hidden_dim=8,
            num_lyric_encoder_hidden_layers=1,
            num_timbre_encoder_hidden_layers=1,
        ),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1),
    }


@pipeline("LongCatAudioDiTPipeline", audio_duration_s=0.01)
def longcat_audio(prompts: Sequence[str]) -> Components:
    """LongCat-AudioDiT."""
    encoder, words = umt5(prompts)
    return {
        "vae": LongCatAudioDiTVae(
            in_channels=1,
            channels=8,
            c_mults=[1, 2],
            strides=[2],
            latent_dim=4,
            encoder_latent_dim=8,
            downsampling_ratio=2,
            sample_rate=2_400,
        ),
        "text_encoder": encoder,
        "tokenizer": words,
        "transformer": LongCatAudioDiTTransformer(
            dit_dim=32, dit_depth=2, dit_heads=4, dit_text_dim=16, latent_dim=4, text_conv=False
        ),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    }


@pipeline("StableAudio3Pipeline", duration=1.0)
def stable_audio_3(prompts: Sequence[str]) -> Components:
    """Stable Audio 3."""
    words = gemma(prompts)[1]
    words.model_max_length = 32
    config = transformers.T5GemmaModuleConfig(
        **SIZES, vocab_size=len(words), max_position_embeddings=64, layer_types=["full_attention"] * 2
    ).to_dict()
    encoder = transformers.T5GemmaConfig(encoder=config, decoder=config, is_encoder_decoder=False)
    return {
        "vae": diffusers.AutoencoderSAME(
            audio_channels=2,
            patch_size=2,
            encoder_channels=8,
            encoder_c_mults=(2,),
            encoder_strides=(2,),
            encoder_transformer_depths=(1,),
            latent_dim=4,
            use_differential_attention=False,
            dim_heads=4,
            ff_mult=2,
            sampling_rate=64,
        ),
        "text_encoder": transformers.T5GemmaEncoderModel(encoder),
        "tokenizer": words,
        "duration_embedder": StableAudio3DurationEmbedder(output_dim=16, fourier_dim=16),
        "transformer": diffusers.StableAudio3DiTModel(
            io_channels=4,
            embed_dim=32,
            depth=2,
            num_heads=4,
            cond_token_dim=16,
            global_cond_dim=16,
            local_add_cond_dim=5,
            timestep_features_dim=16,
            ff_mult=2,
            num_memory_tokens=3,
            use_differential_attention=False,
        ),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1),
    }
