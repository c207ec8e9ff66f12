// The module clipfast_kernels._C. Importing it registers the operators' implementations with torch;
// the functions below only say which instruction set is in use, and let tests choose a lower one.
#include <Python.h>

#include <atomic>
#include <cstring>

#define SIMD_LEVEL 0
#include "cpu/simd.h"
#undef SIMD_LEVEL

namespace clipfast {
namespace {

constexpr const char* kLevelNames[] = {"baseline", "avx2", "avx512"};

SimdLevel best_level() {
#if CLIPFAST_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        return SimdLevel::kAvx512;
    }
    if (avx2) return SimdLevel::kAvx2;
#endif
    return SimdLevel::kBaseline;
}

std::atomic<SimdLevel> level_in_use{best_level()};

PyObject* get_simd_level(PyObject*, PyObject*) {
    return PyUnicode_FromString(kLevelNames[static_cast<int>(simd_level())]);
}

PyObject* set_simd_level(PyObject*, PyObject* name) {
    PyObject* bytes = PyUnicode_AsUTF8String(name);
    if (bytes == nullptr) return nullptr;
    int found = -1;
    for (int level = 0; level <= static_cast<int>(best_level()); ++level) {
        if (std::strcmp(PyBytes_AsString(bytes), kLevelNames[level]) == 0) found = level;
    }
    Py_DECREF(bytes);
    if (found < 0) {
        return PyErr_Format(PyExc_ValueError,
                            "level: expected one this machine has, up to '%s', got %R",
                            kLevelNames[static_cast<int>(best_level())], name);
    }
    level_in_use = static_cast<SimdLevel>(found);
    Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"simd_level", get_simd_level, METH_NOARGS, "The instruction set that the CPU kernels use."},
    {"_set_simd_level", set_simd_level, METH_O, "For tests: 'baseline', 'avx2' or 'avx512'."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

SimdLevel simd_level() { return level_in_use; }

}  // namespace clipfast

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&clipfast::definition); }
