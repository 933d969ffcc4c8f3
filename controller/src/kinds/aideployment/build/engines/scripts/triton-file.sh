
case $file in
  '' | . | ..) fail 'its url does not end in the name of a file' ;;
esac
place "$MODEL_NAME/1/$file"
