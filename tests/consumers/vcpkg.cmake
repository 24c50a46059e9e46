# SPDX-License-Identifier: MIT
#
#   cmake -DOUT=FOLDER [-DSLEEF=ON] [-DBUILD_TYPE=Debug] -P tests/consumers/vcpkg.cmake
#
# Runs vcpkg's portfile for bnorm without vcpkg, by what its manual says of the functions called there, into
# FOLDER/packages.
cmake_minimum_required(VERSION 3.16)
get_filename_component(CURRENT_PORT_DIR ${CMAKE_CURRENT_LIST_DIR}/../../packaging/vcpkg/bnorm ABSOLUTE)
set(CURRENT_PACKAGES_DIR ${OUT}/packages)
set(VCPKG_LIBRARY_LINKAGE static)
set(PORT bnorm)
if(NOT BUILD_TYPE)
    set(BUILD_TYPE Release)
endif()

function(run)
    execute_process(COMMAND ${ARGN} RESULT_VARIABLE failed)
    if(failed)
        message(FATAL_ERROR "failed: ${ARGN}")
    endif()
endfunction()

function(vcpkg_check_features)
    cmake_parse_arguments(in "" "OUT_FEATURE_OPTIONS" "FEATURES" ${ARGN})
    list(GET in_FEATURES 1 option)
    if(SLEEF)
        set(${in_OUT_FEATURE_OPTIONS} -D${option}=ON PARENT_SCOPE)
    else()
        set(${in_OUT_FEATURE_OPTIONS} -D${option}=OFF PARENT_SCOPE)
    endif()
endfunction()

function(vcpkg_cmake_configure)
    cmake_parse_arguments(in "" "SOURCE_PATH" "OPTIONS" ${ARGN})
    run(${CMAKE_COMMAND} -S ${in_SOURCE_PATH} -B ${OUT}/build -DCMAKE_BUILD_TYPE=${BUILD_TYPE}
        -DCMAKE_INSTALL_PREFIX=${CURRENT_PACKAGES_DIR} ${in_OPTIONS})
endfunction()

function(vcpkg_cmake_install)
    run(${CMAKE_COMMAND} --build ${OUT}/build --target install)
endfunction()

function(vcpkg_cmake_config_fixup)
    cmake_parse_arguments(in "" "CONFIG_PATH" "" ${ARGN})
    file(MAKE_DIRECTORY ${CURRENT_PACKAGES_DIR}/share)
    file(RENAME ${CURRENT_PACKAGES_DIR}/${in_CONFIG_PATH} ${CURRENT_PACKAGES_DIR}/share/${PORT})
endfunction()

function(vcpkg_install_copyright)
    cmake_parse_arguments(in "" "" "FILE_LIST" ${ARGN})
    file(MAKE_DIRECTORY ${CURRENT_PACKAGES_DIR}/share/${PORT})
    configure_file(${in_FILE_LIST} ${CURRENT_PACKAGES_DIR}/share/${PORT}/copyright COPYONLY)
endfunction()

include(${CURRENT_PORT_DIR}/portfile.cmake)
