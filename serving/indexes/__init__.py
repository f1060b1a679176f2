"""The life of indexes behind a server: made, filled, read while they change, and deleted.

One process writes (`writers`), any number read (`readers`); what they share is a folder (`data_folder`).
"""
