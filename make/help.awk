# SPDX-License-Identifier: MIT
#
# The targets of the makefiles that are named, which have a comment that begins with "## ", in the groups
# that "##@ " begins. Without all=1 on one screen: the first file's, and the names alone of the others'.

BEGIN {
    FS = ":.*## "
    print "bnorm " version
}
FNR == 1 { file++ }
/^##@ / {
    group = substr($0, 5)
    names = ""
    if (all || file == 1)
        print all ? "\n" group : ""
    else
        groups[++count] = group
}
/^[a-z0-9-]+:.*## / {
    if (all || file == 1)
        printf "  make %-" (all ? 18 : 11) "s %s\n", $1 == "all" ? "" : $1, $2
    else
        more[group] = more[group] " " $1
}
END {
    if (!all) {
        print "\nMore, as make help-all tells:"
        for (i = 1; i <= count; i++)
            print_folded(groups[i], more[groups[i]])
    }
    print ""
    print_folded("Variables", " CC CXX CFLAGS CXXFLAGS LDFLAGS BUILD PREFIX LIBDIR DESTDIR " \
        "SLEEF=0 DEBUG=1 V=1 JOBS=n TESTS=pattern" (all ? " AR NM OBJDUMP RUN MPI ONEDNN_ROOT QUICK STEP" : ""))
}

# Words, each after a space, in lines of at most 80 columns.
function print_folded(title, words,    line, list, n, i) {
    n = split(words, list, " ")
    line = sprintf("  %-10s", title)
    for (i = 1; i <= n; i++) {
        if (length(line) + 1 + length(list[i]) > 80) {
            print line
            line = sprintf("  %-10s", "")
        }
        line = line " " list[i]
    }
    print line
}
