
# The file's name is what LocalAI calls the model. It reads files of these endings as configuration; other known endings of models it would not
# list, in some versions not even .gguf.
case $file in
  *.yaml | *.yml) place "$MODEL_NAME.${file##*.}" ;;
  *) place "$MODEL_NAME" ;;
esac
