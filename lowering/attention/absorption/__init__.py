"""What `positions.absorb` is made of.

scratch    the graph in which programs are put together, and what they capture
places     where an axis of a tensor lies among the positions of a score
steps      integer expressions and conditions as steps of a program
follow     from a captured tensor up its producers
gathers    producers that read a tensor at computed positions
guards     which tensors may be read, and which producers be followed
masks      which parts of a score are masks
known      masks that are known as constants only
moderate   how large a part of a score can be
rows       which masks may become -inf, behind everything else
"""
