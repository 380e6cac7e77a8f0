"""The report as a page: one HTML file that asks the network for nothing.

write     the file: a template, its style and scripts, and the report as data
data      the report as the data that the scripts read; `table` keeps what repeats once
align     the rows of a graph before and after, side by side
maths     formulas of programs as readable maths

`page.html` is the frame, `page.css` the style. The scripts are plain, in the order in which they
are read: `dom.js` makes elements, `model.js` has the data and the filters, `verdict.js` shows what
verification found, `kernel.js` colours kernels, `graph.js` draws a graph, `details.js` a region,
`list.js` the list and the filters, and `main.js` ties them to mouse and keys.
"""
