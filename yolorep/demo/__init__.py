"""`yolorep demo`: train a rep model beside stock on generated images, deploy it, and show what changed."""

from yolorep.demo.run import demo

__all__ = ["demo"]
