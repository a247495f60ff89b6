"""What other libraries call the options that we have, so that a mistake can name the one that is meant.

The names are those of diffusers' networks and schedulers, of transformers' `TrainingArguments`, of diffusers' training
scripts, and of the common implementations of diffusion models.
"""

import difflib
from collections.abc import Collection, Mapping

_NAMES: Mapping[tuple[str, ...], str] = {
    # how long and how a network is trained
    ("updates",): "max_steps max_train_steps num_train_steps num_steps train_steps iterations iters total_steps epochs "
    "max_epochs num_epochs num_train_epochs",
    ("updates", "chain"): "steps",
    ("batch",): "batch_size train_batch_size per_device_train_batch_size bs",
    ("learning_rate",): "lr base_lr max_lr learningrate",
    ("warmup",): "warmup_steps lr_warmup_steps num_warmup_steps warmup_updates",
    ("lr_scheduler",): "lr_scheduler_type lr_schedule scheduler",
    ("weight_decay",): "adam_weight_decay wd",
    ("max_grad_norm",): "grad_clip gradient_clip clip_grad_norm gradient_clip_val gradient_clipping",
    ("ema",): "ema_decay ema_rate ema_max_decay use_ema",
    ("gradient_accumulation_steps",): "accumulate_grad_batches grad_accum grad_accumulation_steps",
    ("gradient_checkpointing",): "use_checkpoint checkpointing activation_checkpointing enable_gradient_checkpointing",
    ("compile",): "torch_compile",
    ("lora_rank",): "rank lora_r lora_dim",
    ("precision",): "mixed_precision dtype torch_dtype weight_dtype fp16 bf16",
    ("checkpoint_every",): "save_steps checkpointing_steps save_every save_interval",
    ("adam_beta1",): "beta1",
    ("adam_beta2",): "beta2",
    ("optimizer",): "optim use_8bit_adam",
    ("weighting",): "loss_weighting weighting_scheme loss_weight snr_gamma",
    # the data
    ("size",): "resolution image_size img_size sample_size image_resolution",
    ("channels",): "in_channels out_channels num_channels image_channels",
    ("source",): "dataset dataset_name data_dir train_data_dir dataset_path data_path path",
    ("workers",): "num_workers dataloader_num_workers",
    ("flip",): "random_flip horizontal_flip random_horizontal_flip",
    ("resample",): "interpolation",
    # the schedule and the output
    ("num_train_timesteps",): "timesteps num_timesteps diffusion_steps num_diffusion_timesteps",
    ("kind",): "beta_schedule noise_schedule schedule",
    ("parameterization",): "prediction_type parametrization objective",
    # the network
    ("class_conditional",): "num_classes num_class_embeds class_cond conditional",
    ("width",): "model_channels base_channels dim hidden_size",
    ("multipliers",): "channel_mult channel_multipliers dim_mults block_out_channels ch_mult",
    ("blocks",): "layers_per_block num_res_blocks num_blocks",
    ("attention",): "attention_resolutions attn_resolutions",
    ("head_size",): "attention_head_dim num_head_channels head_dim",
    ("embedding",): "time_embedding_dim time_embed_dim embedding_dim",
    ("groups",): "norm_num_groups num_groups",
    # teacher, guidance, evaluation
    ("model",): "pretrained_model_name_or_path pretrained_teacher_model teacher_model model_id model_path",
    ("guidance",): "guidance_scale cfg_scale cfg w",
    ("negative",): "negative_prompt",
    ("samples",): "num_samples n_samples num_images",
    ("tracking",): "report_to log_with logger",
    ("seed",): "random_seed manual_seed",
}

OTHER_NAMES = {other: names for names, others in _NAMES.items() for other in others.split()}
"""Another library's name -> ours."""


def meant(name: str, known: Collection[str]) -> list[str]:
    """The names, of those that are known, for which another one may stand: as a synonym, or mistyped; none at all."""
    plain = name.lower().replace("-", "_")
    synonyms = [each for each in OTHER_NAMES.get(plain, (plain,)) if each in known]
    return synonyms or difflib.get_close_matches(name, known, 1)
