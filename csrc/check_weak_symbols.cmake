# Fails when a kernel object defines a weak symbol: the linker could keep the copy of one instruction set for all.
# The reference to the exception personality routine is data and the same in every copy.
cmake_policy(VERSION 3.20)  # a script has no policies of its own, and warns about each empty line of a list
foreach(object IN LISTS OBJECTS)
  execute_process(COMMAND ${NM} ${object} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REPLACE "\n" ";" symbols "${symbols}")
  list(FILTER symbols INCLUDE REGEX " [VWu] ")
  list(FILTER symbols EXCLUDE REGEX "DW\\.ref\\.__gxx_personality_v0")
  if(symbols)
    message(FATAL_ERROR "${object} defines weak symbols: ${symbols}")
  endif()
endforeach()
