"""Vision models of transformers, from small configurations; random weights, no download."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

_VIT: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 64,
    "patch_size": 16,
}
_RESNET = {"model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1]}
_ALL = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
_LAST = {"backbone_config": {**_RESNET, "out_features": ["stage4"]}}
_STAGES = {"backbone_config": {**_RESNET, "out_features": ["stage2", "stage3", "stage4"]}}
_DETR = {
    "encoder_layers": 1,
    "decoder_layers": 1,
    "d_model": 64,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_queries": 10,
}
_HYBRID = {
    **_DETR,
    "decoder_layers": 2,
    "encoder_hidden_dim": 64,
    "encoder_in_channels": [32, 64, 128],
    "decoder_in_channels": [64, 64, 64],
    "backbone_config": {**_RESNET, "model_type": "rt_detr_resnet", "out_features": ["stage2", "stage3", "stage4"]},
}
_FOUR = {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 2, 1]}
_WINDOWS = {"depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8], "window_size": 2, "image_size": 64}
_REGNET = {**_FOUR, "hidden_sizes": [32, 64, 96, 128], "groups_width": 16, "embedding_size": 16}
_MOBILEVIT = {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 16, 16, 24, 32, 40, 80]}
_DPT = {
    **_VIT,
    "num_hidden_layers": 4,
    "backbone_out_indices": [0, 1, 2, 3],
    "neck_hidden_sizes": [16, 32, 64, 64],
    "fusion_hidden_size": 32,
}
_UPERNET = {"hidden_size": 64, "auxiliary_in_channels": 64, "auxiliary_channels": 32}
_HEADS = {"num_attention_heads": [1, 2, 4, 8]}
_FRAMES = {**_VIT, "num_frames": 4}
_PLAIN = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 64}
_VISIBLE = {"initializer_range": 0.02}  # the default of these is 1e-10: their blocks would compute nothing
_SAM = {
    **_PLAIN,
    "output_channels": 32,
    "window_size": 2,
    "global_attn_indexes": [1],
    "mlp_dim": 128,
    "num_pos_feats": 16,
    **_VISIBLE,
}
_POSE = {**_PLAIN, "model_type": "vitpose_backbone", "image_size": [64, 48], "out_indices": [2]}
_GROUPED_QUERIES = {
    "d_model": 64,
    "decoder_layers": 2,
    "decoder_ffn_dim": 64,
    "decoder_self_attention_heads": 4,
    "decoder_cross_attention_heads": 4,
    "num_queries": 10,
    "group_detr": 1,
}
_HGNET = {
    "model_type": "hgnet_v2",
    "stem_channels": [3, 8, 16],
    "stage_in_channels": [16, 32, 64, 128],
    "stage_mid_channels": [16, 16, 32, 32],
    "stage_out_channels": [32, 64, 128, 256],
    "stage_numb_of_layers": [2, 2, 2, 2],
    "hidden_sizes": [32, 64, 128, 256],
}

# Class and configuration; slow ones last.
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("ResNetForImageClassification", {**_RESNET}),
    "resnet_basic": ("ResNetForImageClassification", {**_RESNET, "layer_type": "basic"}),
    "regnet_y": ("RegNetForImageClassification", {**_REGNET}),
    "regnet_x": ("RegNetForImageClassification", {**_REGNET, "layer_type": "x"}),
    "convnext": ("ConvNextForImageClassification", {**_FOUR}),
    "convnextv2": ("ConvNextV2ForImageClassification", {**_FOUR}),
    "dinov3_convnext": ("DINOv3ConvNextModel", {**_FOUR}),
    "efficientnet": (
        "EfficientNetForImageClassification",
        {"width_coefficient": 0.5, "depth_coefficient": 0.5, "image_size": 64, "hidden_dim": 640},
    ),
    "mobilenet_v1": ("MobileNetV1ForImageClassification", {"depth_multiplier": 0.5}),
    "mobilenet_v1_plain_padding": ("MobileNetV1ForImageClassification", {"depth_multiplier": 0.5, "tf_padding": False}),
    "mobilenet_v2": ("MobileNetV2ForImageClassification", {"depth_multiplier": 0.5}),
    "mobilenet_v2_plain_padding": ("MobileNetV2ForImageClassification", {"depth_multiplier": 0.5, "tf_padding": False}),
    "mobilenet_v2_segmentation": ("MobileNetV2ForSemanticSegmentation", {"depth_multiplier": 0.5}),
    "mobilevit": ("MobileViTForImageClassification", {**_MOBILEVIT}),
    "mobilevit_segmentation": ("MobileViTForSemanticSegmentation", {**_MOBILEVIT}),
    "mobilevitv2": ("MobileViTV2ForImageClassification", {"width_multiplier": 0.5}),
    "mobilevitv2_segmentation": ("MobileViTV2ForSemanticSegmentation", {"width_multiplier": 0.5}),
    "bit": (
        "BitForImageClassification",
        {**_RESNET, "hidden_sizes": [32, 64, 96, 128], "num_groups": 8, "embedding_size": 32},
    ),
    "textnet": ("TextNetForImageClassification", {}),
    "superpoint": ("SuperPointForKeypointDetection", {}),
    "levit": ("LevitForImageClassificationWithTeacher", {}),
    "poolformer": ("PoolFormerForImageClassification", {**_FOUR}),
    "swiftformer": ("SwiftFormerForImageClassification", {"embed_dims": [16, 32, 64, 96], "depths": [1, 1, 2, 1]}),
    "pp_lcnet": ("PPLCNetForImageClassification", {}),
    "pp_lcnet_v3": ("PPLCNetV3Backbone", {}),
    "pp_ocrv5_mobile_det": ("PPOCRV5MobileDetForObjectDetection", {}),
    "pp_ocrv5_mobile_rec": ("PPOCRV5MobileRecForTextRecognition", {}),
    "pvt": ("PvtForImageClassification", {**_FOUR, **_HEADS, "image_size": 64}),
    "pvt_v2": ("PvtV2ForImageClassification", {**_HEADS, **_FOUR}),
    "swin": ("SwinForImageClassification", {"embed_dim": 24, **_WINDOWS}),
    "swinv2": ("Swinv2ForImageClassification", {"embed_dim": 24, **_WINDOWS}),
    "swin2sr": ("Swin2SRForImageSuperResolution", {"embed_dim": 24, "depths": [1, 1], "num_heads": [2, 2]}),
    "focalnet": ("FocalNetForImageClassification", {"embed_dim": 24, "depths": [1, 1, 2, 1]}),
    "hiera": ("HieraForImageClassification", {"embed_dim": 24, "depths": [1, 1, 2, 1], "image_size": [64, 64]}),
    "segformer": ("SegformerForSemanticSegmentation", {**_HEADS, **_FOUR, "decoder_hidden_size": 64}),
    "glpn": ("GLPNForDepthEstimation", {**_HEADS, **_FOUR, "decoder_hidden_size": 64}),
    "vit": ("ViTForImageClassification", _VIT),
    "deit": ("DeiTForImageClassificationWithTeacher", _VIT),
    "beit": ("BeitForImageClassification", _VIT),
    "beit_segmentation": ("BeitForSemanticSegmentation", {**_VIT, "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]}),
    "data2vec": (
        "Data2VecVisionForSemanticSegmentation",
        {**_VIT, "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]},
    ),
    "dinov2": ("Dinov2ForImageClassification", _VIT),
    "dinov3_vit": ("DINOv3ViTModel", _VIT),
    "yolos": ("YolosForObjectDetection", {**_VIT, "image_size": [64, 64], "num_detection_tokens": 10}),
    "dpt": ("DPTForDepthEstimation", _DPT),
    "dpt_segmentation": ("DPTForSemanticSegmentation", {**_DPT, "use_batch_norm_in_fusion_residual": True}),
    "upernet": ("UperNetForSemanticSegmentation", {"backbone_config": {**_RESNET, **_ALL}, **_UPERNET}),
    "upernet_convnext": (
        "UperNetForSemanticSegmentation",
        {
            "backbone_config": {
                "model_type": "convnext",
                "hidden_sizes": [16, 32, 64, 128],
                "depths": [1, 1, 1, 1],
                **_ALL,
            },
            **_UPERNET,
        },
    ),
    "detr": ("DetrForObjectDetection", {**_DETR, **_LAST}),
    "conditional_detr": ("ConditionalDetrForObjectDetection", {**_DETR, **_LAST}),
    "dab_detr": ("DabDetrForObjectDetection", {**_DETR, "hidden_size": 64, **_LAST}),
    "table_transformer": ("TableTransformerForObjectDetection", {**_DETR, **_LAST}),
    "deformable_detr": (
        "DeformableDetrForObjectDetection",
        {**_DETR, **_STAGES, "decoder_layers": 2, "num_feature_levels": 3},
    ),
    "rt_detr": ("RTDetrForObjectDetection", _HYBRID),
    "rt_detr_v2": ("RTDetrV2ForObjectDetection", _HYBRID),
    "d_fine": ("DFineForObjectDetection", _HYBRID),
    "mask2former": (
        "Mask2FormerForUniversalSegmentation",
        {"backbone_config": {**_RESNET, **_ALL}, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 10},
    ),
    "timm_wrapper": ("TimmWrapperForImageClassification", {"architecture": "resnet18"}),
    "hgnet_v2": ("HGNetV2ForImageClassification", {}),
    "hgnet_v2_small": ("HGNetV2ForImageClassification", _HGNET),
    "dinov2_with_registers": ("Dinov2WithRegistersForImageClassification", _VIT),
    "clip_vision": ("CLIPVisionModel", _VIT),
    "siglip_vision": ("SiglipVisionModel", _VIT),
    "blip_vision": ("BlipVisionModel", {**_VIT, **_VISIBLE}),
    "owlvit_vision": ("OwlViTVisionModel", _VIT),
    "aimv2_vision": ("Aimv2VisionModel", _VIT),
    "mlcd_vision": ("MLCDVisionModel", _VIT),
    "tipsv2_vision": ("Tipsv2VisionModel", _VIT),
    "vit_mae": ("ViTMAEModel", _VIT),
    "vit_msn": ("ViTMSNForImageClassification", _VIT),
    "ijepa": ("IJepaForImageClassification", _VIT),
    "pixio": ("PixioModel", _VIT),
    "radio": ("RadioModel", _VIT),
    "sam_vision": ("SamVisionModel", _SAM),
    "sam_hq_vision": ("SamHQVisionModel", _SAM),
    "sam2_vision": (
        "Sam2VisionModel",
        {
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": 16,
                "image_size": [64, 64],
                "embed_dim_per_stage": [16, 32, 64, 128],
                "blocks_per_stage": [1, 1, 2, 1],
                "global_attention_blocks": [3],
            },
            "backbone_channel_list": [128, 64, 32, 16],
            "fpn_hidden_size": 32,
        },
    ),
    "florence2_vision": (
        "Florence2VisionBackbone",
        {
            "embed_dim": [16, 32, 64, 128],
            "depths": [1, 1, 2, 1],
            "num_heads": [1, 2, 4, 8],
            "num_groups": [1, 2, 4, 8],
            "window_size": 4,
        },
    ),
    "align_vision": (
        "AlignVisionModel",
        {"width_coefficient": 0.5, "depth_coefficient": 0.5, "image_size": 64, "hidden_dim": 640},
    ),
    "vitdet": (
        "VitDetBackbone",
        {
            **_PLAIN,
            "pretrain_image_size": 64,
            "residual_block_indices": [1],
            "window_block_indices": [0],
            "window_size": 3,
        },
    ),
    "vitpose": ("VitPoseForPoseEstimation", {"backbone_config": _POSE, "use_simple_decoder": False}),
    "vitpose_simple": ("VitPoseForPoseEstimation", {"backbone_config": _POSE}),
    "vitmatte": (
        "VitMatteForImageMatting",
        {
            "backbone_config": {
                **_PLAIN,
                "model_type": "vitdet",
                "num_channels": 4,
                "pretrain_image_size": 64,
                "out_features": ["stage2"],
                "residual_block_indices": [1],
            },
            "hidden_size": 64,
            "convstream_hidden_sizes": [12, 24, 48],
            "fusion_hidden_sizes": [64, 32, 16, 8],
        },
    ),
    "donut_swin": ("DonutSwinForImageClassification", {"embed_dim": 24, **_WINDOWS}),
    "maskformer_swin": ("MaskFormerSwinBackbone", {"embed_dim": 24, **_WINDOWS}),
    "maskformer": (
        "MaskFormerForInstanceSegmentation",
        {
            "backbone_config": {**_RESNET, **_ALL},
            "decoder_config": {"model_type": "detr", **_DETR},
            "fpn_feature_size": 32,
            "mask_feature_size": 32,
        },
    ),
    "eomt": ("EomtForUniversalSegmentation", {**_PLAIN, "num_blocks": 1, "num_queries": 10}),
    "zoedepth": (
        "ZoeDepthForDepthEstimation",
        {
            "backbone_config": {
                **_VIT,
                "model_type": "beit",
                "num_hidden_layers": 4,
                "out_indices": [1, 2, 3, 4],
                "reshape_hidden_states": False,
            },
            "neck_hidden_sizes": [16, 32, 64, 64],
            "fusion_hidden_size": 32,
            "bottleneck_features": 32,
            "num_attractors": [4, 4, 2, 1],
            "bin_embedding_dim": 16,
            "bin_configurations": [{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0}],
            "use_batch_norm_in_fusion_residual": True,
        },
    ),
    "rf_detr": (
        "RfDetrForObjectDetection",
        {
            "backbone_config": {
                **_VIT,
                "model_type": "rf_detr_dinov2",
                "num_windows": 2,
                "num_hidden_layers": 4,
                "out_indices": [2, 4],
            },
            **_GROUPED_QUERIES,
        },
    ),
    "lw_detr": (
        "LwDetrForObjectDetection",
        {
            "backbone_config": {
                **_PLAIN,
                "model_type": "lw_detr_vit",
                "pretrain_image_size": 64,
                "num_windows": 4,
                "window_block_indices": [0, 2],
                "out_indices": [2, 3],
            },
            "projector_scale_factors": [2.0, 0.5],
            **_GROUPED_QUERIES,
        },
    ),
    "timesformer": ("TimesformerForVideoClassification", _FRAMES),
    "videomae": ("VideoMAEForVideoClassification", _FRAMES),
    "vivit": ("VivitForVideoClassification", {**_FRAMES, "tubelet_size": [2, 16, 16]}),
    "vjepa2": (
        "VJEPA2ForVideoClassification",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "crop_size": 64,
            "frames_per_clip": 4,
            "num_pooler_layers": 1,
            "pred_hidden_size": 32,
            "pred_num_hidden_layers": 1,
            "pred_num_attention_heads": 4,
        },
    ),
    "pp_lcnet_v4": ("PPLCNetV4Backbone", {}),
    "pp_ocrv5_server_rec": ("PPOCRV5ServerRecForTextRecognition", {}),
    "pp_ocrv6_small_rec": ("PPOCRV6SmallRecForTextRecognition", {}),
    "pp_ocrv6_tiny_rec": ("PPOCRV6TinyRecForTextRecognition", {}),
    "uvdoc_backbone": ("UVDocBackbone", {}),
    "slanet": ("SLANetForTableRecognition", {"max_text_length": 5}),
    "mgp_str": (
        "MgpstrForSceneTextRecognition",
        {**_PLAIN, "image_size": [32, 128], "num_bpe_labels": 50, "num_wordpiece_labels": 30},
    ),
    "cvt": ("CvtForImageClassification", {"num_labels": 7}),
    "deimv2": ("Deimv2ForObjectDetection", {"decoder_layers": 2, "num_queries": 10}),
    "superglue": ("SuperGlueForKeypointMatching", {"sinkhorn_iterations": 3}),
    "depth_anything": ("DepthAnythingForDepthEstimation", {}),
    "levit_one_head": ("LevitForImageClassification", {}),
}

NAMES = tuple(CONFIGURATIONS)
# Shapes of examples that are not images of 3 channels and any size: video frames, pairs of images, lines of text.
SHAPES = {
    **dict.fromkeys(("timesformer", "videomae", "vivit", "vjepa2"), (4, 3, 64, 64)),
    **dict.fromkeys(("vitpose", "vitpose_simple"), (3, 64, 48)),
    **dict.fromkeys(("pp_ocrv5_server_rec", "pp_ocrv6_small_rec", "pp_ocrv6_tiny_rec"), (3, 48, 64)),
    "superglue": (2, 3, 64, 64),
    "vitmatte": (4, 64, 64),
    "mgp_str": (3, 32, 128),
}
# They choose by scores, and rounding decides near ties.
SORTED = ("rt_detr*", "rf_detr", "lw_detr", "d_fine", "deimv2", "superpoint", "superglue")


def load() -> Any:
    """Import the package, offline."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import transformers
    import transformers.modeling_utils

    return transformers


def build(name: str) -> nn.Module:
    """The model `name` in train mode."""
    kind, options = CONFIGURATIONS[name]
    model_class = getattr(load(), kind)
    model: nn.Module = model_class(model_class.config_class(**options))
    return model
