"""Packages: the code of applications, fetched to a node, unpacked and installed there once.

`fetch` gets what a URL names, `archive` unpacks it, `python` and `binary` install it, `store` keeps what is installed.
`building`, `detection` and `storage` are the other side: they make packages of folders and put them where nodes fetch
them.
"""
