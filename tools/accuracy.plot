# SPDX-License-Identifier: MIT
#
# Error against mean/deviation, from what `accuracy --tsv FILE` writes:
#   gnuplot -e "tsv='FILE'; svg='docs/accuracy.svg'" tools/accuracy.plot

set terminal svg size 960,420 dynamic font "sans-serif,13" background "white"
set output svg
set datafile separator "\t"
set multiplot layout 1,2
set logscale xy
set format x "10^{%T}"
set format y "10^{%T}"
set xrange [1:1e7]
set xlabel "mean / deviation"
set grid lc rgb "#dddddd"
set key top left reverse Left

# Columns: distribution, parameter, n, layout, library, quantity, error. Errors below 0.01 and those
# without bound are drawn at the edges.
edge(v) = v < 1e-2 ? 1e-2 : v
rows(quantity, library, layout) = sprintf("< awk -F '\\t' '$1 ~ /^mean / && $2 >= 1 && $3 == 100352 && $4 == \"%s\" && $5 == \"%s\" && $6 == \"%s\"' %s", layout, library, quantity, tsv)

array quantity[2] = ["variance", "y"]
array heading[2] = ["variance, error in ulp", "y, error in units of 2^{-22} max(1, |y|)"]
array goal[2] = [4, 1]
do for [i = 1:2] {
    if (i == 2) { unset key }
    set title heading[i]
    set yrange [1e-2:(i == 1 ? 1e16 : 1e9)]
    plot rows(quantity[i], "PyTorch", "NHWC") using 2:(edge($7)) with linespoints lc rgb "#ee4c2c" pt 7 title "PyTorch NHWC", \
         rows(quantity[i], "PyTorch", "NCHW") using 2:(edge($7)) with linespoints lc rgb "#ee4c2c" dt 2 pt 6 title "PyTorch NCHW", \
         rows(quantity[i], "oneDNN", "NHWC") using 2:(edge($7)) with linespoints lc rgb "#0071c5" pt 5 title "oneDNN NHWC", \
         rows(quantity[i], "oneDNN", "NCHW") using 2:(edge($7)) with linespoints lc rgb "#0071c5" dt 2 pt 4 title "oneDNN NCHW", \
         rows(quantity[i], "bnorm", "NHWC") using 2:(edge($7)) with linespoints lw 2 lc rgb "#2ca02c" pt 9 title "bnorm, both layouts", \
         goal[i] with lines lc rgb "#888888" dt 3 title "goal"
}
unset multiplot
