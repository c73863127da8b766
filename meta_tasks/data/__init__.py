"""Data sets as tensors in memory. Read where they lie: nothing is downloaded, nothing unpickled."""

from meta_tasks.data.images import ImageSet, load_images
from meta_tasks.data.sources import SOURCES, Status, catalogue, locate
from meta_tasks.data.text import TextSet, load_text

__all__ = ["SOURCES", "ImageSet", "Status", "TextSet", "catalogue", "load_images", "load_text", "locate"]
