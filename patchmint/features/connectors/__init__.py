"""Parameter-free ways to make features of a vision encoder's hidden states: Dense Connector and DeCo.

`plan` decides, without torch, what is made; `features` makes it.
"""
