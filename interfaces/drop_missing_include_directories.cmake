# Message packages installed by pip name the Python include directories of the machine that built them; CMake refuses
# those that do not exist here. A stock ROS 2 names existing ones, which are kept.
get_property(_imported DIRECTORY PROPERTY IMPORTED_TARGETS)
list(FILTER _imported INCLUDE REGEX "__rosidl_generator_py$")
foreach(_target IN LISTS _imported)
  set(_existing "")
  get_target_property(_dirs ${_target} INTERFACE_INCLUDE_DIRECTORIES)
  foreach(_dir IN LISTS _dirs)
    if(EXISTS "${_dir}")
      list(APPEND _existing "${_dir}")
    endif()
  endforeach()
  set_target_properties(${_target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${_existing}")
endforeach()
