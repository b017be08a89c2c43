"""How models run, whatever they compute: number formats, memory, where the time goes."""
