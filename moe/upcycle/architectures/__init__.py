"""Dense architectures that can be upcycled: a file each."""
