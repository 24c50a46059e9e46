// SPDX-License-Identifier: MIT
#include "shim.h"

#if !__has_include(<benchmark/benchmark.h>)
#error "Google Benchmark is missing: run make deps (Debian: libbenchmark-dev)"
#endif
#include <benchmark/benchmark.h>

#include <string>
#include <vector>

namespace {

benchmark::State *cpp(shim_state *state) {
    return reinterpret_cast<benchmark::State *>(state);
}

// The display of a run whose results the program itself shows.
class QuietReporter : public benchmark::BenchmarkReporter {
  public:
    bool ReportContext(const Context &) override { return true; }
    void ReportRuns(const std::vector<Run> &) override {}
};

} // namespace

void shim_initialize(int *argc, char **argv, void (*help)(void)) {
    benchmark::Initialize(argc, argv, help);
}

int shim_unrecognized(int argc, char **argv) {
    return benchmark::ReportUnrecognizedArguments(argc, argv);
}

const char *shim_filter(void) {
    static std::string filter;
    filter = benchmark::GetBenchmarkFilter();
    return filter.c_str();
}

void shim_context(const char *key, const char *value) {
    benchmark::AddCustomContext(key, value);
}

// Without UseRealTime(), whose only effects would be "/real_time" at the end of every name and an
// iteration count from wall-clock instead of CPU time. Both times are in the results anyway.
void shim_register(const char *name, shim_function function, void *arg, int repetitions) {
    auto *registered = benchmark::RegisterBenchmark(name, [function, arg](benchmark::State &state) {
        function(reinterpret_cast<shim_state *>(&state), arg);
    });
    registered->Unit(benchmark::kMicrosecond);
    if (repetitions)
        registered->Repetitions(repetitions);
}

size_t shim_run(int quiet) {
    QuietReporter reporter;
    return quiet ? benchmark::RunSpecifiedBenchmarks(&reporter)
                 : benchmark::RunSpecifiedBenchmarks();
}

int shim_keep_running(shim_state *state) {
    return cpp(state)->KeepRunning();
}

size_t shim_iterations(const shim_state *state) {
    return static_cast<size_t>(reinterpret_cast<const benchmark::State *>(state)->max_iterations);
}

void shim_counter(shim_state *state, const char *name, double value) {
    cpp(state)->counters[name] = value;
}

void shim_label(shim_state *state, const char *label) {
    cpp(state)->SetLabel(label);
}

void shim_error(shim_state *state, const char *message) {
    cpp(state)->SkipWithError(message);
}
