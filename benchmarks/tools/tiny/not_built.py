"""The pipelines of diffusers whose call takes prompts and that are not built, and why."""

_ONE_PROMPT = "It takes one prompt a call."
_IMAGE = "It needs an image or a video beside the prompt."
_GUARDRAIL = "It checks for unsafe output by cosmos_guardrail, a large package that is not installed."
_TORCHVISION = "Its processor needs torchvision, which is not installed."
_NOT_LOADED = "diffusers 0.42 cannot load a folder that it saved: it does not find a network of the deprecated module."
_TEXT = "It makes text."

NOT_BUILT: dict[str, str] = {
    "AltDiffusionPipeline": _NOT_LOADED,
    "BlipDiffusionPipeline": _IMAGE,
    "CogVideoXFunControlPipeline": _IMAGE,
    "CogView4ControlPipeline": _IMAGE,
    "Cosmos2TextToImagePipeline": _GUARDRAIL,
    "Cosmos2VideoToWorldPipeline": _GUARDRAIL,
    "Cosmos2_5_PredictBasePipeline": _GUARDRAIL,
    "Cosmos2_5_TransferPipeline": _GUARDRAIL,
    "Cosmos3OmniPipeline": _ONE_PROMPT,
    "CosmosTextToWorldPipeline": _GUARDRAIL,
    "CosmosVideoToWorldPipeline": _GUARDRAIL,
    "CycleDiffusionPipeline": _IMAGE,
    "DiffusionGemmaPipeline": _TEXT,
    "DreamLiteMobilePipeline": _ONE_PROMPT,
    "DreamLitePipeline": _ONE_PROMPT,
    "EasyAnimateControlPipeline": _IMAGE,
    "FluxControlPipeline": _IMAGE,
    "FluxFillPipeline": _IMAGE,
    "FluxPriorReduxPipeline": _IMAGE,
    "GlmImagePipeline": _TORCHVISION,
    "HunyuanVideoFramepackPipeline": _IMAGE,
    "KandinskyCombinedPipeline": "Its text encoder reads tokens of XLM-RoBERTa, of which no tiny tokenizer is made.",
    "KandinskyPipeline": "It takes embeddings of images, which KandinskyPriorPipeline makes of prompts.",
    "LLaDA2Pipeline": _TEXT,
    "LTX2DFRTemporalRefinePipeline": _IMAGE,
    "MusicLDMPipeline": "diffusers 0.42 expects of CLAP what transformers 5 does not give.",
    "OmniGenPipeline": _TORCHVISION,
    "PIAPipeline": _IMAGE,
    "QwenImage21Pipeline": _TORCHVISION,
    "QwenImageLayeredPipeline": _IMAGE,
    "SanaWMPipeline": _IMAGE,
    "ShapEPipeline": "It makes solid shapes.",
    "StableCascadeCombinedPipeline": _NOT_LOADED,
    "StableCascadeDecoderPipeline": "It takes embeddings of images, which StableCascadePriorPipeline makes of prompts.",
    "StableDiffusionDepth2ImgPipeline": _IMAGE,
    "StableDiffusionGLIGENTextImagePipeline": _IMAGE,
    "StableDiffusionParadigmsPipeline": "Its call fails in diffusers 0.42: DDIMScheduler asks for a further argument.",
    "TextToVideoZeroPipeline": _ONE_PROMPT,
    "TextToVideoZeroSDXLPipeline": _ONE_PROMPT,
    "UnCLIPPipeline": _NOT_LOADED,
    "UniDiffuserPipeline": "It makes image and caption together, by one network with two times.",
    "VQDiffusionPipeline": _NOT_LOADED,
    "VersatileDiffusionDualGuidedPipeline": _NOT_LOADED,
    "VersatileDiffusionTextToImagePipeline": _NOT_LOADED,
    "WanAnimatePipeline": _IMAGE,
    "WanVACEPipeline": _ONE_PROMPT,
    "WuerstchenCombinedPipeline": _NOT_LOADED,
    "WuerstchenDecoderPipeline": _NOT_LOADED,
    "WuerstchenPriorPipeline": _NOT_LOADED,
}
"""Why a pipeline is not built, one sentence each, by its class."""
