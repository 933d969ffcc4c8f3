
if [ "$url" = "$MODEL_PATH" ] && [ -z "$old" ]; then
  printf 'model %s: was already complete\n' "$MODEL_NAME"
  exit 0
fi
# From a pipe tar does not find out by itself.
case $MODEL_PATH in
  *.tar.gz* | *.tgz*) set -- -z ;;
  *.tar.bz2*) set -- -j ;;
  *.tar.xz*) set -- -J ;;
  *) set -- ;;
esac
mkdir -p "$part/files"
# A shell tells only how a pipe's last command ended: of the first one, a file does.
({ (request) && : >"$part/whole"; } | tar -x "$@" -f - -C "$part/files" --no-same-owner) &
child=$!
wait "$child" || fail 'the archive cannot be extracted'
[ -e "$part/whole" ] || fail 'the download failed'
chmod -R u+rwX "$part/files"
rmdir "$part/files" 2>/dev/null && fail 'the archive is empty'
# From here on the old mark would speak of files that may be gone.
rm -f "$marker"
# Into directories that other archives may have brought.
cd "$part/files"
find . -mindepth 1 -type d -exec sh -c 'for d do mkdir -p "$0/$d" || exit 1; done' "$models" {} +
find . ! -type d -exec sh -c 'for f do mv -fT "$f" "$0/$f" || exit 1; done' "$models" {} +
cd /
clean
[ -z "$old" ] || rm -f "$models/$old"
mark ''
