"""The format on disk, both ways, and the commit protocol. No torch, no Ray, no models.

`writer` makes shards of `sample`s as `layout` and `schema` say; `reader` reads them; `manifest` is dataset.json;
`verify` tells what is wrong with a data set.
"""
