"""One expert, from the rows that it gives up to the tokens that it was given.

    x -> products with matrices of the expert (+ biases) -> activation -> product (+ bias) -> y

Between the products anything pointwise may stand, of columns of the first ones. The weight of a
choice is multiplied with y, with x, or with what the last product multiplies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch.fx import Node

from fuser.graph.axes import Dim, Dims, Unproven, fresh, leaves, resolve
from fuser.graph.effects import draws
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.program import Program, ProgramBuilder
from fuser.graph.pull import pull_pointwise, pull_view
from fuser.specs import TOKEN, Columns

from ..cuts import known_cut
from ..declined import Declined, spelled
from .copies import CASTS, COPIES
from .products import Product, Products
from .space import Place, Space, require
from .weights import Weights, same_weights, unchanged, weighted

MAX_NODES = 256


@dataclass
class Expert:
    """What was found.

    Attributes:
        products: the first ones, and at the end the last.
        columns: of the inputs of the activation.
        activation: its program.
        x: the tokens; `features` are their own axes.
        before: what tokens are multiplied with before they go through it, as far as that differs
            between the choices of a token.
        inside: what its hidden features are multiplied with before the last product, which might
            be done after it as well.
        unread: why what its only product multiplies was taken for the tokens.
    """

    products: list[Product]
    columns: list[Columns]
    activation: Program
    x: Place
    features: Dim
    before: Weights
    inside: Weights
    interior: set[Node]
    unread: Declined | None = None


class NoExpert(Declined):
    """What is added up are no rows of an expert: nobody would take it for a mixture."""


class ExpertWalk:
    """Walks up one expert.

    Attributes:
        met: where an expert cannot be read, whether a product with a matrix of its own was.
    """

    def __init__(self, space: Space) -> None:
        self.space, self.view = space, space.view
        self.interior, self.products = space.interior, Products(space)
        self.builder = ProgramBuilder()
        self.columns: list[Columns] = []
        self.first: list[Product] = []
        self._inputs: dict[Columns, Node] = {}
        self._products: dict[Node, int] = {}
        self._seen: dict[Node, tuple[Dims, Node]] = {}
        self.before, self.inside = Weights(), Weights()
        self.met = False

    def run(self, node: Node, dims: Dims) -> Expert:
        """The expert that gave rows.

        Args:
            node: the rows, possibly weighted.
            dims: their axes.

        Raises:
            Declined: it is no expert of the kind above.
        """
        features = tuple(a for a in leaves(dims) if a not in self.space.row_axes)
        require(bool(features), "rows without features", node)
        return self.through(self._last(node, dims))

    def through(self, last: Product) -> Expert:
        """The expert whose last product is known.

        Raises:
            Declined: it is no expert of the kind above.
        """
        kept = set(self.interior)
        try:
            result = self._visit(last.rows, last.dims, last.inner, linear=last.bias is None)
            none = "no product with an expert's matrix is behind the activation"
            require(bool(self.first), none, last.node)
            x, inner = self._tokens()
        except (Declined, Unproven) as error:
            self.met = bool(self.first)
            self.interior.clear()
            self.interior.update(kept)
            return self._alone(last, error)
        products, program = [*self.first, last], self.builder.finish(result)
        return Expert(
            products, self.columns, program, x, inner, self.before, self.inside, self.interior
        )

    def _alone(self, last: Product, error: Exception) -> Expert:
        """An expert that is one product.

        Args:
            last: the product.
            error: why nothing was found before it; raised where that cannot be the tokens.
        """
        if not isinstance(error, Declined) or self.space.sorted:
            raise error
        builder, self.first = ProgramBuilder(), [last]
        try:
            x, inner = self._tokens()
        except (Declined, Unproven):
            raise error from None
        program = builder.finish(builder.input("h0"))
        return Expert(
            [last], [Columns(TOKEN)], program, x, inner, self.before, Weights(), self.interior,
            error,
        )  # fmt: skip

    # -- after the last product

    def _last(self, node: Node, dims: Dims) -> Product:
        """The last product, past casts, views and the bias."""
        bias: Place | None = None
        for _ in range(MAX_NODES):
            product = self.products.find(node, dims)
            if product is not None:
                require(bias is None or product.bias is None, "two biases are added", node)
                return _with(product, product.bias or bias)
            op = self.view.op(node)
            step = unchanged(self.space, node, dims)
            if step is None:
                plain = op.name == "add" and op.args.get("alpha", 1) == 1 and bias is None
                if not plain:
                    raise NoExpert(self._stands(node), node)
                step, added = self._apart(op, node, dims)
                bias = self.products.bias(*added)
            self.interior.add(node)
            node, dims = step
        raise Declined("more than 256 operators behind an expert", node)

    def _apart(self, op: Op, node: Node, dims: Dims) -> tuple[tuple[Node, Dims], tuple[Node, Dims]]:
        """The inputs of an addition: the rows first, which tell tokens apart, and the bias."""
        inputs = list(pull_pointwise(op, node, dims).items())
        rows = [pair for pair in inputs if self.space.token_axes & set(leaves(pair[1]))]
        if len(rows) != 1:
            rows = [pair for pair in inputs if self.products.is_one(pair[0])]
        if len(inputs) != 2 or len(rows) != 1:
            raise NoExpert(self._stands(node), node)
        return rows[0], next(pair for pair in inputs if pair is not rows[0])

    # -- between the products

    def _visit(self, node: Node, dims: Dims, features: Dim, *, linear: bool = False) -> Node:
        """The program's node for a value, with which the result grows where it is `linear`."""
        dims = resolve(dims)
        if node in self._seen:
            before, known = self._seen[node]
            require(
                resolve(before) == dims, "hidden features are combined with a rearranged copy", node
            )
            return known
        require(len(self._seen) <= MAX_NODES, "more than 256 operators in an expert", node)
        found = self._columns_of(node, dims, features)
        if found is None:
            found = self._pointwise(node, dims, features, linear and self._is_own(node))
        self._seen[node] = (dims, found)
        return found

    def _columns_of(self, node: Node, dims: Dims, features: Dim) -> Node | None:
        """An input of the activation: a first product, or columns of one."""
        cut = known_cut(self.view, node)
        if cut is None:
            index = self._first(node, dims)
            return None if index is None else self._input(Columns(index))
        at = cut.dim
        require(
            set(leaves((dims[at],))) == set(leaves((features,))),
            "a part is cut of something else than features",
            node,
        )
        whole = fresh(value(cut.source).shape[at : at + 1], "columns")[0]
        index = self._first(cut.source, (*dims[:at], whole, *dims[at + 1 :]))
        require(index is not None, "columns are cut of something else than a product", node)
        assert index is not None
        self.interior.update(cut.made_by)
        return self._input(Columns(index, *cut.bounds))

    def _input(self, columns: Columns) -> Node:
        if columns not in self._inputs:
            self._inputs[columns] = self.builder.input(f"h{len(self.columns)}")
            self.columns.append(columns)
        return self._inputs[columns]

    def _first(self, node: Node, dims: Dims) -> int | None:
        """The number of the first product that a node is, past views and its bias."""
        passed: list[Node] = []
        bias: tuple[Node, Dims] | None = None
        while node not in self._products:
            product = self.products.find(node, dims)
            if product is not None:
                placed = None if bias is None else self.products.bias(*bias)
                require(placed is None or product.bias is None, "two biases are added", node)
                self._products[node] = len(self.first)
                self.first.append(_with(product, product.bias or placed))
                break
            op = self.view.op(node)
            if op.kind is Kind.VIEW and not op.inplace:
                step = pull_view(op, node, dims)
            elif op.name == "add" and bias is None and op.args.get("alpha", 1) == 1:
                try:
                    step, bias = self._apart(op, node, dims)
                except NoExpert:
                    return None
            else:
                return None
            passed.append(node)
            node, dims = step
        self.interior.update(passed)
        number = self._products[node]
        for other in passed:
            self._products[other] = number
        return number

    def _pointwise(self, node: Node, dims: Dims, features: Dim, linear: bool) -> Node:
        op = self.view.op(node)
        if op.kind is Kind.VIEW and not op.inplace:
            self.interior.add(node)
            source, pulled = pull_view(op, node, dims)
            return self._visit(source, pulled, features, linear=linear)
        if op.kind is Kind.DROPOUT and not draws(node, op):
            self.interior.add(node)
            return self._visit(op.args["input"], dims, features, linear=linear)
        require(op.kind is Kind.POINTWISE, self._stands(node), node)
        self.interior.add(node)
        factor = weighted(self.space, op, node, dims) if linear else None
        if factor is not None and factor[0].factors:
            weights, source, pulled = factor
            self.inside = self.inside.times(weights)
            return self._visit(source, pulled, features, linear=True)
        pulled = pull_pointwise(op, node, dims)
        keeps = linear and (op.name in CASTS or (op.name == "mul" and len(pulled) == 2))
        mapped = {n: self._visit(n, d, features, linear=keeps) for n, d in pulled.items()}
        for source in node.all_input_nodes:
            require(source in mapped, "the activation reads a number that is no constant", node)
        return self.builder.pointwise(op, node, mapped)

    def _stands(self, node: Node) -> str:
        return f"{spelled(node)} stands where an expert's product was expected"

    # -- products and tokens

    def _tokens(self) -> tuple[Place, Dim]:
        """What all first products multiply, and its features; the weight may be there."""
        found: tuple[Place, Dim, Weights] | None = None
        for product in self.first:
            node, dims, before = self._past_weights(product)
            place = self.space.locate(node, dims)
            if set(leaves(place.dims)) & self.space.chosen_axes and not self.space.places:
                raise Declined("the choices of a token do not start from the same numbers", node)
            if found is None:
                found = place, product.inner, before
            same = same_rows(found[0], found[1], place, product.inner)
            require(same, "products of an expert multiply different tensors", product.node)
            alike = same_weights(found[2], before)
            require(alike, "some products of an expert multiply weighted tokens", product.node)
        assert found is not None
        self.before = found[2]
        return found[:2]

    def _past_weights(self, product: Product) -> tuple[Node, Dims, Weights]:
        node, dims, found = product.rows, product.dims, Weights()
        for _ in range(MAX_NODES):
            op = self.view.op(node)
            step = self._uncast(op, node, dims, product) if self._leads(node) else None
            if step is not None and self._reaches_weight(node):
                self.interior.add(node)
                node, dims = step
                continue
            factor = self._weighted(op, node, dims, product)
            if factor is None:
                return self._unwidened(node, product), dims, found
            self.interior.add(node)
            weights, node, dims = factor
            found = found.times(weights)
        raise Declined("more than 256 operators before an expert", node)

    def _uncast(self, op: Op, node: Node, dims: Dims, product: Product) -> tuple[Node, Dims] | None:
        """Past what changes no number, or casts to the dtype in which is multiplied anyway."""
        step, source = unchanged(self.space, node, dims), op.args.get("input")
        if step is not None or op.name not in CASTS or not is_tensor(source):
            return step
        last = value(node).dtype is value(product.node).dtype
        return (source, dims) if last and value(source).dtype.is_floating_point else None

    def _unwidened(self, node: Node, product: Product) -> Node:
        """Tokens as they were before they were cast to a wider dtype, of which the product has
        nothing."""
        op, dtype = self.view.op(node), value(product.node).dtype
        source = op.args.get("input")
        if op.name not in CASTS or not is_tensor(source) or not self._leads(node):
            return node
        wider = value(node).dtype.is_floating_point and value(node).itemsize > dtype.itemsize
        if not wider or value(source).dtype is not dtype:
            return node
        self.interior.add(node)
        return source

    def _is_own(self, node: Node) -> bool:
        """Whether nobody else reads a node."""
        return len(node.users) == 1

    def _leads(self, node: Node, depth: int = 8) -> bool:
        """Whether a node is read on the way to products of this expert alone."""
        ends = {product.node for product in self.first}

        def leads(user: Node) -> bool:
            op = self.view.op(user)
            if op.name == "type_as" and op.args.get("input") is not node:
                return True  # of this one only the dtype is read
            passes = op.kind is Kind.VIEW or op.name in (*CASTS, *COPIES, "mul")
            return user in ends or (depth > 0 and passes and self._leads(user, depth - 1))

        return bool(node.users) and all(map(leads, node.users))

    def _reaches_weight(self, node: Node) -> bool:
        op = self.view.op(node)
        while self._leads(node) and (op.kind is Kind.VIEW or op.name in CASTS):
            node = op.args["input"]
            op = self.view.op(node)
        return op.name == "mul"

    def _weighted(
        self, op: Op, node: Node, dims: Dims, product: Product
    ) -> tuple[Weights, Node, Dims] | None:
        """The tokens of `tokens * weight`, where the weight tells choices apart."""
        try:
            found = None if op.inplace else weighted(self.space, op, node, dims)
        except Unproven:
            return None
        if found is None or not found[0].factors:
            return None
        own = set(leaves(found[0].factors[0].dims))
        return found if self.space.chosen_axes & own else None


def _with(product: Product, bias: Place | None) -> Product:
    return replace(product, bias=bias)


def same_rows(a: Place, a_inner: Dim, b: Place, b_inner: Dim) -> bool:
    """Whether two products multiply one tensor, contracted along the same dimension of it."""
    if a.node is not b.node:
        return False
    names = dict(zip(leaves((b_inner,)), leaves((a_inner,)), strict=False))
    renamed = tuple(tuple(names.get(x, x) for x in dim) for dim in resolve(b.dims))
    return renamed == resolve(a.dims)
