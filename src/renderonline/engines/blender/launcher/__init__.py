"""Blender's command line on top of Blender's own Python: what the farm runs to render a scene.

Runs inside the environment that `install.py` makes, as `python -I …/launcher`, and imports nothing but the standard
library and `bpy`. Works in every Blender from 3.4 on.
"""
