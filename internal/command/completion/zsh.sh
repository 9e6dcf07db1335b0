#compdef APP
# zsh completion of APP. For this shell alone:
#   source <(APP completion zsh)
# and for all that come: write it to a directory of $fpath, as _APP
_APP() {
	local -a lines words_and_abouts
	local line word about tab=$'\t'
	lines=("${(@f)$(${words[1]/#\~/$HOME} complete "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}")
	for line in "${(@)lines[2,-1]}"; do
		word=${line%%$tab*} about=${line#*$tab}
		words_and_abouts+=("${word//:/\\:}:$about")
	done
	if (( $#words_and_abouts )); then
		_describe -V APP words_and_abouts
	elif [[ $lines[1] == files ]]; then
		_files
	fi
}
if [[ $funcstack[1] == _APP ]]; then
	_APP "$@"
else
	compdef _APP APP
fi
