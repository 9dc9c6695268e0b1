"""`yolorep demo`: train a rep model on generated images, deploy it, and show that nothing but the speed has changed."""

from yolorep.demo.run import demo

__all__ = ["demo"]
