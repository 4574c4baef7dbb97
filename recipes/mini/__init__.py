"""How `mini` is made and judged. Run the modules from the repository's root, for example:

python -m recipes.mini.build out/mini

`make mini` runs all of them in order.
"""
