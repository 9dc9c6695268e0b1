"""The sizes of the shipped models, for `yolorep models`; a test compares them with the models."""

from __future__ import annotations

from typing import NamedTuple


class Size(NamedTuple):
    """A model as ultralytics builds it, for 80 classes (a classifier: 1000).

    block: which branches. blocks: how many layers have them. trained, deployed: parameters. flops, deployed_flops: of
    the convolutions, an addition and a multiplication each, for one image of 640 pixels (a classifier: 224), in 1e9.
    latency: milliseconds of the deployed model for such an image, where a record in `benchmarks/results` has them:
    OpenVINO, float32, two cores.
    """

    block: str
    blocks: int
    trained: int
    deployed: int
    flops: float
    deployed_flops: float
    latency: float | None = None


SIZES = {
    "repvgg-a0.yaml": Size("repvgg", 22, 9_108_968, 8_313_880, 3.02, 2.72),
    "repvgg-a1.yaml": Size("repvgg", 22, 14_092_264, 12_795_432, 5.25, 4.73),
    "repvgg-a2.yaml": Size("repvgg", 22, 28_210_600, 25_507_752, 11.37, 10.23),
    "repvgg-b0.yaml": Size("repvgg", 28, 15_817_960, 14_345_512, 6.79, 6.11),
    "repvgg-b1.yaml": Size("repvgg", 28, 57_415_016, 51_841_832, 26.25, 23.63),
    "repvgg-b1g2.yaml": Size("repvgg", 28, 45_782_376, 41_372_456, 19.57, 17.62),
    "repvgg-b1g4.yaml": Size("repvgg", 28, 39_966_056, 36_137_768, 16.23, 14.61),
    "repvgg-b2.yaml": Size("repvgg", 28, 89_022_376, 80_330_536, 40.83, 36.75),
    "repvgg-b2g2.yaml": Size("repvgg", 28, 70_846_376, 63_972_136, 30.39, 27.36),
    "repvgg-b2g4.yaml": Size("repvgg", 28, 61_758_376, 55_792_936, 25.18, 22.66),
    "repvgg-b3.yaml": Size("repvgg", 28, 123_085_288, 110_978_856, 58.24, 52.41),
    "repvgg-b3g2.yaml": Size("repvgg", 28, 96_911_848, 87_422_760, 43.21, 38.89),
    "repvgg-b3g4.yaml": Size("repvgg", 28, 83_825_128, 75_644_712, 35.69, 32.12),
    "repvgg-d2se.yaml": Size("repvgg", 48, 133_334_836, 120_411_316, 72.95, 65.65),
    "yolov5l-rep.yaml": Size("repvgg", 72, 58_048_960, 53_225_024, 146.10, 134.99),
    "yolov5m-rep.yaml": Size("repvgg", 50, 27_314_656, 25_111_456, 69.16, 64.21),
    "yolov5n-csprepresnet.yaml": Size("repvgg", 11, 2_438_304, 2_398_440, 6.79, 6.70),
    "yolov5n-efficientrep.yaml": Size("repvgg", 35, 4_895_328, 4_479_504, 14.01, 12.90),
    "yolov5n-relu-csprepresnet.yaml": Size("repvgg", 11, 2_438_304, 2_398_440, 6.79, 6.70),
    "yolov5n-rep.yaml": Size("repvgg", 28, 2_846_208, 2_654_816, 8.13, 7.72),
    "yolov5n-seg-rep.yaml": Size("repvgg", 28, 3_098_976, 2_907_584, 11.18, 10.77),
    "yolov5n-silu-efficientrep.yaml": Size("repvgg", 35, 4_895_328, 4_479_504, 14.01, 12.90),
    "yolov5s-csprepresnet.yaml": Size("repvgg", 11, 8_088_160, 7_930_960, 19.73, 19.41),
    "yolov5s-efficientrep.yaml": Size("repvgg", 35, 18_009_664, 16_370_080, 48.70, 44.27),
    "yolov5s-relu-csprepresnet.yaml": Size("repvgg", 11, 8_088_160, 7_930_960, 19.73, 19.41),
    "yolov5s-rep-k33.yaml": Size("repvgg", 28, 11_944_576, 10_963_584, 30.81, 28.61),
    "yolov5s-rep.yaml": Size("repvgg", 28, 9_905_088, 9_153_152, 25.62, 24.00, 67.8),
    "yolov5s-repvgg.yaml": Size("repvgg", 22, 12_797_472, 11_671_904, 34.09, 31.33),
    "yolov5s-seg-rep.yaml": Size("repvgg", 28, 10_559_584, 9_807_648, 36.27, 34.64),
    "yolov5s-silu-efficientrep.yaml": Size("repvgg", 35, 18_009_664, 16_370_080, 48.70, 44.27),
    "yolov5s6-rep.yaml": Size("repvgg", 36, 16_800_976, 15_309_328, 26.12, 24.40),
    "yolov5x-rep.yaml": Size("repvgg", 94, 106_230_048, 97_276_448, 267.36, 246.39),
    "yolov6n-rep.yaml": Size("repvgg", 35, 4_915_904, 4_500_080, 14.01, 12.90),
    "yolov6s-rep.yaml": Size("repvgg", 35, 18_091_776, 16_452_192, 48.70, 44.27),
}
