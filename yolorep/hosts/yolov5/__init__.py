"""Hooks, launcher and evaluation for YOLOv5 trees and the published `yolov5` package."""
