"""What is known of one or several runs, as one HTML file that opens from the disk and asks no network.

`stored` reads a workdir, `pictures` predicts, `choice` and `regions` say what is worth looking at, `gallery`
makes pictures of it, `tables`, `charts` and `facts` the rest; `writing` puts it together, with the template,
style and script in `page/`.
"""
