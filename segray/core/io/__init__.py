"""Bytes from outside: stores, images, video, what users name as inputs, and whose folder is whose."""
