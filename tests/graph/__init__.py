"""The stages that read a graph, without a device or a compile."""
