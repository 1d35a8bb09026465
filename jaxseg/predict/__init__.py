"""Label maps, overlays and probabilities of anybody's photos.

`options` has the flags, `photos` finds what is meant by --input, `outputs` says where each result goes and
sees to it that nobody's file is written over, `writing` makes the files of one photo, `coco` one of all,
`video` a video of another, and `predicting` goes through all photos. They take a model as a function
(`inference`), no config.
"""
