"""How well a class is still found where a part of each of its objects is covered.

`covering` covers objects, `curve` measures runs on them, `picture` draws what was found, `options` are the
flags of `occlusion-curve`.
"""
