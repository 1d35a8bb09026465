"""`jaxseg benchmark`: what this machine takes to train, predict, evaluate, read and start.

`measures` is the command. Steps of the model are timed by `steps`, reading by `loading`, augmentation by
`augmenting`, compilation and start in processes of their own by `compiling` and `startup`, memory by
`memory`, and how cost grows with the size of the problem by `growth` (drawn by `growth_plot`). Below them:
`rounds` times several ways to do the same in turns, `sides` has what is timed, `peaks` what chips can do,
`children` the processes, and `twin` the same model in PyTorch.
"""
