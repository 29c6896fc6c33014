def write_sweep_page(table, path): pass
