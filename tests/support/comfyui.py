"""What ComfyUI's own nodes take, and how its networks name their layers: facts of its source, written down here.

Nodes: `nodes.py` and, of `comfy_extras/`, `nodes_custom_sampler.py` (KSamplerSelect, ManualSigmas, SamplerCustom),
`nodes_sd3.py` (EmptySD3LatentImage, TripleCLIPLoader), `nodes_flux.py` (FluxGuidance), `nodes_hunyuan.py`
(EmptyHunyuanLatentVideo), `nodes_lt.py` (EmptyLTXVLatentVideo, LTXVConditioning), `nodes_lumina2.py`.

Layers: `comfy/lora.py`, `model_lora_keys_unet`. It takes `diffusion_model.LAYER` of every layer of its own network, and
`lora_unet_LAYER` with underscores; of U-Nets also `lora_unet_` with diffusers' names (`comfy/utils.py`,
`unet_to_diffusers`); of Flux `transformer.` with diffusers' (`flux_to_diffusers`); of Z-Image `diffusion_model.` with
diffusers' (`z_image_to_diffusers`); of HunyuanVideo also names with `_attn_qkv`, `_attn_proj`, `_mod.linear`,
`modulation.linear`, `mlp.fc1` and `mlp.fc2` in place of its own.
"""

import re
from collections.abc import Mapping
from typing import Any

Node = tuple[dict[str, str], tuple[str, ...]]
"""(required inputs and their types, types of the outputs)."""

TEXT_AND_CLIP = {"clip": "CLIP"}

NODES: dict[str, Node] = {
    "CheckpointLoaderSimple": ({"ckpt_name": "FILE"}, ("MODEL", "CLIP", "VAE")),
    "UNETLoader": ({"unet_name": "FILE", "weight_dtype": "STRING"}, ("MODEL",)),
    "VAELoader": ({"vae_name": "FILE"}, ("VAE",)),
    "CLIPLoader": ({"clip_name": "FILE", "type": "STRING"}, ("CLIP",)),
    "DualCLIPLoader": ({"clip_name1": "FILE", "clip_name2": "FILE", "type": "STRING"}, ("CLIP",)),
    "TripleCLIPLoader": ({"clip_name1": "FILE", "clip_name2": "FILE", "clip_name3": "FILE"}, ("CLIP",)),
    "LoraLoaderModelOnly": ({"model": "MODEL", "lora_name": "FILE", "strength_model": "FLOAT"}, ("MODEL",)),
    "CLIPTextEncode": ({"text": "STRING", "clip": "CLIP"}, ("CONDITIONING",)),
    "CLIPTextEncodeLumina2": (
        {"system_prompt": "STRING", "user_prompt": "STRING", "clip": "CLIP"},
        ("CONDITIONING",),
    ),
    "FluxGuidance": ({"conditioning": "CONDITIONING", "guidance": "FLOAT"}, ("CONDITIONING",)),
    "LTXVConditioning": (
        {"positive": "CONDITIONING", "negative": "CONDITIONING", "frame_rate": "FLOAT"},
        ("CONDITIONING", "CONDITIONING"),
    ),
    "EmptyLatentImage": ({"width": "INT", "height": "INT", "batch_size": "INT"}, ("LATENT",)),
    "EmptySD3LatentImage": ({"width": "INT", "height": "INT", "batch_size": "INT"}, ("LATENT",)),
    "EmptyHunyuanLatentVideo": (
        {"width": "INT", "height": "INT", "length": "INT", "batch_size": "INT"},
        ("LATENT",),
    ),
    "EmptyLTXVLatentVideo": ({"width": "INT", "height": "INT", "length": "INT", "batch_size": "INT"}, ("LATENT",)),
    "KSamplerSelect": ({"sampler_name": "STRING"}, ("SAMPLER",)),
    "ManualSigmas": ({"sigmas": "STRING"}, ("SIGMAS",)),
    "SamplerCustom": (
        {
            "model": "MODEL",
            "add_noise": "BOOLEAN",
            "noise_seed": "INT",
            "cfg": "FLOAT",
            "positive": "CONDITIONING",
            "negative": "CONDITIONING",
            "sampler": "SAMPLER",
            "sigmas": "SIGMAS",
            "latent_image": "LATENT",
        },
        ("LATENT", "LATENT"),
    ),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, ("IMAGE",)),
    "SaveImage": ({"images": "IMAGE", "filename_prefix": "STRING"}, ()),
}

CHOICES = {
    ("CLIPLoader", "type"): {"wan", "ltxv", "qwen_image", "lumina2", "sd3", "flux2"},
    ("DualCLIPLoader", "type"): {"sdxl", "sd3", "flux", "hunyuan_video", "hidream"},
    ("UNETLoader", "weight_dtype"): {"default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"},
    ("KSamplerSelect", "sampler_name"): {"euler", "ddim", "heun", "dpmpp_2m"},
    ("CLIPTextEncodeLumina2", "system_prompt"): {"superior", "alignment"},
}
"""Some of the values of an input that takes one of a list."""

LITERALS = {"FILE": str, "STRING": str, "FLOAT": float, "INT": int, "BOOLEAN": bool}


def mistakes(workflow: Mapping[str, Any]) -> list[str]:
    """What ComfyUI would refuse of a workflow in its API format."""
    found = []
    for name, node in workflow.items():
        kind, inputs = node["class_type"], node["inputs"]
        if kind not in NODES:
            found.append(f"{name}: no node is called {kind}")
            continue
        required = NODES[kind][0]
        found += [f"{name}: {odd}" for odd in sorted(required.keys() ^ inputs.keys())]
        for key in required.keys() & inputs.keys():
            if not fits(workflow, inputs[key], required[key]):
                found.append(f"{name}.{key}: {inputs[key]} is no {required[key]}")
            if inputs[key] not in CHOICES.get((kind, key), [inputs[key]]):
                found.append(f"{name}.{key}: {inputs[key]} is none of its values")
    return found


def fits(workflow: Mapping[str, Any], value: Any, kind: str) -> bool:  # noqa: ANN401
    """Whether an input is a value of a type, or a link to an output of it."""
    if kind in LITERALS:
        return type(value) is LITERALS[kind]
    if not (isinstance(value, list) and len(value) == 2 and value[0] in workflow):
        return False
    outputs = NODES[workflow[value[0]]["class_type"]][1]
    return value[1] < len(outputs) and outputs[value[1]] == kind


def manual_sigmas(text: str) -> list[float]:
    """The numbers that ManualSigmas reads, by its own pattern, which knows no exponents."""
    return [float(number) for number in re.findall(r"[-+]?(?:\d*\.*\d+)", text)]


BLOCK_OF_FLUX = (
    r"(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)|norm1(_context)?\.linear|ff(_context)?\.net\.(0\.proj|2))"
)

ATTENTION_OF_U_NETS = r"(proj_(in|out)|transformer_blocks_\d+_(attn[12]_to_(q|k|v|out_0)|ff_net_(0_proj|2)))"

LAYERS: dict[str, str] = {
    "StableDiffusionPipeline": r"lora_unet_(((down_blocks|up_blocks)_\d+|mid_block)_"
    rf"(resnets_\d+_(conv1|conv2|time_emb_proj|conv_shortcut)|attentions_\d+_{ATTENTION_OF_U_NETS}|"
    r"(down|up)samplers_0_conv)|conv_in|conv_out|time_embedding_linear_[12])",
    "StableDiffusionXLPipeline": r"lora_unet_((input_blocks|output_blocks|middle_block)(_\d+)?_[012]_"
    rf"(in_layers_2|emb_layers_1|out_layers_3|skip_connection|op|conv|{ATTENTION_OF_U_NETS})|"
    r"input_blocks_0_0|out_2|time_embed_[02]|label_emb_0_[02])",
    "StableDiffusion3Pipeline": r"diffusion_model\.(joint_blocks\.\d+\.(x|context)_block\."
    r"(attn2?\.(qkv|proj)|mlp\.fc[12]|adaLN_modulation\.1)|x_embedder\.proj|context_embedder|[ty]_embedder\.mlp\.[02]|"
    r"final_layer\.(linear|adaLN_modulation\.1))",
    "FluxPipeline": rf"transformer\.(transformer_blocks\.\d+\.{BLOCK_OF_FLUX}|single_transformer_blocks\.\d+\."
    r"(attn\.to_[qkv]|proj_mlp|proj_out|norm\.linear)|x_embedder|context_embedder|proj_out|norm_out\.linear|"
    r"time_text_embed\.(timestep|text|guidance)_embedder\.linear_[12])",
    "WanPipeline": r"diffusion_model\.(blocks\.\d+\.((self|cross)_attn\.[qkvo]|ffn\.[02])|(text|time)_embedding\.[02]|"
    r"time_projection\.1|head\.head)",
    "LTXPipeline": r"diffusion_model\.(transformer_blocks\.\d+\.(attn[12]\.(to_[qkv]|to_out\.0)|ff\.net\.(0\.proj|2))|"
    r"patchify_proj|proj_out|adaln_single\.(linear|emb\.timestep_embedder\.linear_[12])|caption_projection\.linear_[12])",
    "QwenImagePipeline": r"diffusion_model\.(transformer_blocks\.\d+\."
    r"(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)|(img|txt)_mod\.1|(img|txt)_mlp\.net\.(0\.proj|2))|img_in|txt_in|"
    r"time_text_embed\.timestep_embedder\.linear_[12]|norm_out\.linear|proj_out)",
    "ZImagePipeline": r"diffusion_model\.((layers|noise_refiner|context_refiner)\.\d+\."
    r"(attention\.(to_[qkv]|to_out\.0)|feed_forward\.w[123]|adaLN_modulation\.0)|cap_embedder\.1|t_embedder\.mlp\.[02]|"
    r"all_x_embedder\.2-1|all_final_layer\.2-1\.(linear|adaLN_modulation\.1))",
    "Lumina2Pipeline": r"diffusion_model\.((layers|noise_refiner|context_refiner)\.\d+\."
    r"(attention\.(qkv|out)|feed_forward\.w[123]|adaLN_modulation\.1)|cap_embedder\.1|t_embedder\.mlp\.[02]|x_embedder|"
    r"final_layer\.(linear|adaLN_modulation\.1))",
    "HunyuanVideoPipeline": r"diffusion_model\."
    r"(double_blocks\.\d+\.(img|txt)_(attn_(qkv|proj)|mod\.linear|mlp\.fc[12])|single_blocks\.\d+\.(linear[12]|modulation\.linear)|txt_in\.individual_token_refiner\.blocks\.\d+\."
    r"(self_attn_(qkv|proj)|mlp\.fc[12]|adaLN_modulation\.1)|txt_in\.([tc]_embedder\.(in|out)_layer|input_embedder)|"
    r"(time_in|vector_in|guidance_in)\.(in|out)_layer|final_layer\.(linear|adaLN_modulation\.1))",
}
"""Patterns of the names under which ComfyUI finds the layers of a network, by the class of diffusers' pipeline."""
