"""Folders of small models with random weights, as transformers saves them."""

from __future__ import annotations

import torch
import transformers


def save(folder, model, processor):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def detr(folder):
    torch.manual_seed(0)
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, layer_type="basic", out_features=["stage4"]
    )
    small = {"encoder_layers": 1, "encoder_ffn_dim": 32, "encoder_attention_heads": 2}
    small |= {name.replace("encoder", "decoder"): value for name, value in small.items()}
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone_config=backbone,
        d_model=32,
        num_queries=12,
        num_labels=5,
        **small,
    )
    processor = transformers.DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    return save(folder, transformers.DetrForObjectDetection(config), processor)


def rt_detr(folder):
    torch.manual_seed(0)
    stages = ["stage2", "stage3", "stage4"]
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, layer_type="basic", out_features=stages
    )
    small = {"encoder_layers": 1, "encoder_ffn_dim": 32, "encoder_attention_heads": 2}
    small |= {name.replace("encoder", "decoder"): value for name, value in small.items()}
    config = transformers.RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=[8, 16, 16],
        decoder_in_channels=[32] * 3,
        encoder_hidden_dim=32,
        d_model=32,
        num_queries=12,
        num_labels=5,
        **small,
    )
    processor = transformers.RTDetrImageProcessor(size={"height": 64, "width": 64})
    return save(folder, transformers.RTDetrForObjectDetection(config), processor)


def dinov2(folder):
    torch.manual_seed(0)
    config = transformers.Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=56)
    processor = transformers.BitImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    return save(folder, transformers.Dinov2Model(config), processor)


def siglip(folder):
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = {"vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.SiglipConfig(
        vision_config={**tower, "image_size": 64, "patch_size": 16}, text_config={**tower, **text}
    )
    processor = transformers.SiglipImageProcessor(size={"height": 64, "width": 64})
    return save(folder, transformers.SiglipModel(config), processor)
