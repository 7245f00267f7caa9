def report(run):
    pass
